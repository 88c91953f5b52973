/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MB_NUMA_UFFD_H
#define MB_NUMA_UFFD_H

#include <linux/userfaultfd.h>

/* Of userfaultfd(2), what is newer than the headers that this is built with may be. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* 5.11 */
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00) /* 6.1, of /dev/userfaultfd */
#endif
#define FEATURE_WP_SHMEM (1u << 12) /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 5.19 */

#endif
