// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/dma.h>
#include <string.h>

int mb_dma_read(struct mb_dma *dma, uint64_t gpa, void *buf, uint64_t len)
{
	void *hva;
	int rc = mb_dma_map(dma, gpa, len, MB_DMA_READ, &hva);

	if (rc == -EXDEV)
		return dma->ops->read ? dma->ops->read(dma, gpa, buf, len) : -EFAULT;
	if (rc)
		return rc;
	memcpy(buf, hva, len);
	mb_dma_unmap(dma, gpa, len, MB_DMA_READ);
	return 0;
}

int mb_dma_write(struct mb_dma *dma, uint64_t gpa, const void *buf, uint64_t len)
{
	void *hva;
	int rc = mb_dma_map(dma, gpa, len, MB_DMA_WRITE, &hva);

	if (rc)
		return rc == -EXDEV ? -EFAULT : rc;
	memcpy(hva, buf, len);
	mb_dma_unmap(dma, gpa, len, MB_DMA_WRITE);
	return 0;
}
