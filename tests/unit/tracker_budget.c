// SPDX-License-Identifier: Apache-2.0
#include "tracker_budget.h"
#include "tracker_guest.h"

#include <errno.h>
#include <sys/resource.h>

/* What the tracker costs. */

/*
 * What faults cost stays within the budget, however much there would be to see; and they are those
 * that the kernel counts, whatever it tells of huge pages.
 */
START_TEST(test_budget)
{
	struct vcpu c[] = {{.group = 0, .len = BYTES, .writes = true}, {.group = 1, .len = BYTES}};
	double guest = 0, cpu = 0, invalidations = 0, counted = 0;
	struct rusage before, after;
	unsigned seconds = 5;

	make(false, _i ? MB_PAGEMAP_EXACT : MB_PAGEMAP_ALL, 0);
	start();
	go(&c[0]);
	go(&c[1]);
	nap(3000); /* of a wrong guess it has to find out first */
	getrusage(RUSAGE_SELF, &before);
	for (unsigned i = 0; i < seconds; i++) {
		struct mb_tracker_stats s;

		nap(1000);
		mb_tracker_stats(tracker, &s);
		ck_assert_uint_eq(s.guest_budget_ppm, MB_TRACKER_GUEST_PPM);
		ck_assert_uint_eq(s.cpu_budget_ppm, MB_TRACKER_CPU_PPM);
		guest += s.guest_ppm;
		cpu += s.cpu_ppm;
		invalidations += s.invalidations;
		counted += s.faults;
	}
	getrusage(RUSAGE_SELF, &after);
	halt(&c[0]);
	halt(&c[1]);
	ck_assert_msg(guest / seconds < 1.5 * MB_TRACKER_GUEST_PPM, "%f ppm of the guest",
		guest / seconds);
	ck_assert_msg(cpu / seconds < 2.0 * MB_TRACKER_CPU_PPM, "%f ppm of a CPU", cpu / seconds);
	ck_assert_msg(invalidations / seconds < 250, "%f invalidations a second",
		invalidations / seconds);
	ck_assert_msg(guest > 0 && invalidations > 0, "it does nothing");
	ck_assert_msg((double)(after.ru_minflt - before.ru_minflt) < 2 * counted + 2000,
		"%ld faults, %f counted", after.ru_minflt - before.ru_minflt, counted);
	finish();
}
END_TEST

/* What KVM says of faults: nothing, or that vCPUs fault all the time. */
static bool says_faults;
static bool go_back; /* a fault that was under way has ended */
static uint64_t n_faults;

static int say_faults(void *ctx, struct mb_vcpu_faults *n)
{
	if (!__atomic_load_n(&says_faults, __ATOMIC_RELAXED))
		return -ENOTSUP;
	n->fixed = n->repeated = __atomic_add_fetch(&n_faults, 1000000, __ATOMIC_RELAXED);
	if (go_back)
		n->fixed = n->repeated = 7 + n_faults / 1000000 % 2;
	return 0;
}

static double guest_ppm(unsigned seconds)
{
	struct mb_tracker_stats s;
	double sum = 0;

	for (unsigned i = 0; i < seconds; i++) {
		nap(1000);
		mb_tracker_stats(tracker, &s);
		ck_assert_uint_le(s.kvm_faults.fixed, 1000000);
		ck_assert_uint_le(s.kvm_faults.repeated, 1000000);
		ck_assert(s.knows_kvm_faults || !s.kvm_faults.repeated);
		sum += s.guest_ppm;
	}
	ck_assert(s.knows_kvm_faults == says_faults);
	return sum / seconds;
}

/* What KVM counts is paid for as far as it can be because of us: vCPUs that fault again and again
 * while we take something out. A fault costs next to nothing here, so that is most of it. */
START_TEST(test_kvm_faults)
{
	struct vcpu c = {.len = BYTES};
	double before, after;

	kvm_faults = say_faults;
	go_back = _i;
	fault_ns = 1;
	make(false, MB_PAGEMAP_ALL, 100000);
	start();
	go(&c);
	nap(4500); /* until windows are as short as they get: then there are most looks */
	before = guest_ppm(2);
	__atomic_store_n(&says_faults, true, __ATOMIC_RELAXED);
	nap(2000);
	after = guest_ppm(2);
	halt(&c);
	ck_assert_msg(go_back ? after < 2 * before + 200 : after > 3 * before,
		"%f ppm of the guest, then %f", before, after);
	ck_assert_msg(after < 150000, "%f ppm of the guest", after);
	finish();
}
END_TEST

void add_budget_cases(TCase *cases)
{
	tcase_add_loop_test(cases, test_budget, 0, 2);
	tcase_add_loop_test(cases, test_kvm_faults, 0, 2);
}
