// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <mirrorball/clock.h>
#include <mirrorball/cpuid.h>
#include <mirrorball/thread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vcpu_internal.h"

#define STACK_BYTES (256u << 10)
#define KICK_SIGNAL SIGRTMIN

/* The signal's only effect is that KVM_RUN returns. */
static void on_kick(int signal)
{
	(void)signal;
}

/* ---- creation, on the vCPU's own thread ---- */

static int set_up_cpuid(struct mb_vcpu *vcpu)
{
	struct kvm_cpuid2 *list;
	int rc = mb_cpuid_build(vcpu->set->supported, vcpu->set->cpuid, vcpu->index, &list);

	if (rc)
		return rc;
	rc = mb_vcpu_ioctl(vcpu, KVM_SET_CPUID2, list);
	free(list);
	return rc;
}

/* *step: what was being done, for the message. */
static int set_up(struct mb_vcpu *vcpu, const char **step)
{
	struct mb_vcpus *set = vcpu->set;
	const struct mb_host *host = mb_vm_host(set->vm);
	int rc;

	*step = "create it";
	rc = mb_host_ioctl(host, mb_vm_fd(set->vm), KVM_CREATE_VCPU,
		(void *)(unsigned long)vcpu->index);
	if (rc < 0)
		return rc;
	vcpu->fd = rc;
	*step = "map its state";
	vcpu->run = mmap(NULL, host->vcpu_mmap_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return -errno;
	}
	*step = "set its CPUID";
	rc = set_up_cpuid(vcpu);
	if (rc)
		return rc;
	*step = "set its MSRs";
	rc = mb_msrs_init_vcpu(host, vcpu->fd);
	if (rc)
		return rc;
	
	if (mb_vm_x2apic_ids(set->vm)) {
		*step = "set its APIC's mode";
		rc = mb_vcpu_start_in_x2apic(vcpu);
		if (rc)
			return rc;
	}
	if (vcpu->index < 2) {
		*step = "read its state";
		rc = mb_vcpu_read_state(vcpu, false, &set->power_on[vcpu->index]);
	}
	return rc;
}

/* ---- the thread ---- */

static void run_until_request(struct mb_vcpu *vcpu)
{
	struct mb_vcpus *set = vcpu->set;
	bool completed = true; /* what the last exit was for */

	for (;;) {
		bool astray = mb_vcpu_is_astray(vcpu);
		int rc = 0;

		/* The instruction that left the guest is completed before the mode changes under it
		 * (api.rst, KVM_RUN). */
		if (astray && completed)
			rc = mb_vcpu_find_view(vcpu);
		else if (astray)
			__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		if (!rc)
			rc = mb_vcpu_ioctl(vcpu, KVM_RUN, NULL);
		completed = rc < 0;
		if (rc == -EINTR) {
			/* As kick_all, the other way round. A pause that was given up is no request. */
			__atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
			if (__atomic_load_n(&set->request, __ATOMIC_SEQ_CST))
				return;
			continue;
		}
		if (rc == -EAGAIN) /* INIT has come */
			continue;
		__atomic_store_n(&vcpu->n_exits, vcpu->n_exits + 1, __ATOMIC_RELAXED);
		if (rc < 0)
			mb_vcpu_run_failed(vcpu, rc);
		else if (mb_vcpu_handle_exit(vcpu))
			continue;
		pthread_mutex_lock(&set->lock);
		vcpu->halted = true;
		pthread_mutex_unlock(&set->lock);
		return;
	}
}

static void *thread_main(void *arg)
{
	struct mb_vcpu *vcpu = arg;
	struct mb_vcpus *set = vcpu->set;
	const char *step = "";
	char name[16];
	sigset_t kick;
	int rc;

	snprintf(name, sizeof(name), "vcpu%u", vcpu->index);
	pthread_setname_np(pthread_self(), name);
	vcpu->tid = gettid();
	rc = set_up(vcpu, &step);

	pthread_mutex_lock(&set->lock);
	if (rc && set->err && !set->err->text[0])
		mb_error_set(set->err, -rc, "vCPU %u: cannot %s: %s", vcpu->index, step, strerror(-rc));
	vcpu->rc = rc;
	vcpu->ready = true;
	pthread_cond_broadcast(&set->out);

	sigemptyset(&kick);
	sigaddset(&kick, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &kick, NULL);

	while (!set->stop) {
		uint64_t unset = 0;

		if (set->pause_count || vcpu->halted) {
			vcpu->inside = false;
			pthread_cond_broadcast(&set->out);
			pthread_cond_wait(&set->go, &set->lock);
			continue;
		}
		vcpu->inside = true;
		vcpu->run->immediate_exit = 0;
		pthread_mutex_unlock(&set->lock);
		if (!__atomic_load_n(&set->first_run_ns, __ATOMIC_RELAXED))
			__atomic_compare_exchange_n(&set->first_run_ns, &unset, mb_now_ns(), false,
				__ATOMIC_RELAXED, __ATOMIC_RELAXED);
		run_until_request(vcpu);
		pthread_mutex_lock(&set->lock);
	}
	vcpu->inside = false;
	pthread_cond_broadcast(&set->out);
	pthread_mutex_unlock(&set->lock);
	return NULL;
}

static int start_thread(struct mb_vcpu *vcpu, const cpu_set_t *cpus)
{
	int rc = mb_thread_start(&vcpu->thread, STACK_BYTES, cpus, thread_main, vcpu);

	vcpu->has_thread = !rc;
	return rc;
}

/* Starts all threads and waits until each has made its vCPU. */
static int create_all(struct mb_vcpus *set, const cpu_set_t *group_cpus, struct mb_error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < set->n && !rc; i++) {
		struct mb_vcpu *vcpu = &set->vcpu[i];

		rc = start_thread(vcpu, group_cpus ? &group_cpus[vcpu->group] : NULL);
		if (rc) {
			pthread_mutex_lock(&set->lock);
			mb_error_set(err, -rc, "vCPU %u: cannot start its thread: %s; too many"
				" processes? (ulimit -u)", i, strerror(-rc));
			pthread_mutex_unlock(&set->lock);
		}
	}
	pthread_mutex_lock(&set->lock);
	for (unsigned i = 0; i < set->n; i++) {
		struct mb_vcpu *vcpu = &set->vcpu[i];

		while (vcpu->has_thread && !vcpu->ready)
			pthread_cond_wait(&set->out, &set->lock);
		if (!rc)
			rc = vcpu->rc;
	}
	set->err = NULL;
	pthread_mutex_unlock(&set->lock);
	return rc;
}

int mb_vcpus_create(struct mb_vm *vm, const struct mb_vcpus_config *config, struct mb_vcpus **out,
	struct mb_error *err)
{
	const struct mb_host *host = mb_vm_host(vm);
	struct mb_cpuid_config cpuid = {
		.n_vcpus = config->n_vcpus,
		.n_views = mb_vm_n_views(vm),
		.tsc_deadline = host->cap[MB_CAP_TSC_DEADLINE_TIMER],
		.msi_ext_dest_id = mb_vm_x2apic_ids(vm),
	};
	struct sigaction kick = {.sa_handler = on_kick};
	struct kvm_cpuid2 *supported;
	struct mb_vcpus *set;
	int rc;

	if (!config->n_vcpus || config->n_vcpus > host->max_vcpus ||
		config->n_vcpus > host->max_vcpu_id)
		return mb_error_set(err, EINVAL, "%u vCPUs: this host's KVM offers 1 to %u",
			config->n_vcpus,
			host->max_vcpus < host->max_vcpu_id ? host->max_vcpus : host->max_vcpu_id);
	rc = mb_cpuid_supported(host, &supported);
	if (rc)
		return mb_error_set(err, -rc, "KVM: cannot read the CPUID it supports: %s",
			strerror(-rc));
	set = calloc(1, sizeof(*set) + config->n_vcpus * sizeof(set->vcpu[0]));
	if (!set) {
		free(supported);
		return mb_error_set(err, ENOMEM, "%u vCPUs: out of memory", config->n_vcpus);
	}
	if (err)
		err->text[0] = '\0';
	set->vm = vm;
	set->ops = config->ops;
	set->ops_ctx = config->ops_ctx;
	set->supported = supported;
	set->cpuid = &cpuid;
	set->err = err;
	set->pause_count = 1;
	set->request = true;
	set->n = config->n_vcpus;
	pthread_mutex_init(&set->lock, NULL);
	pthread_cond_init(&set->go, NULL);
	pthread_cond_init(&set->out, NULL);
	for (unsigned i = 0; i < set->n; i++) {
		set->vcpu[i].set = set;
		set->vcpu[i].index = i;
		set->vcpu[i].fd = set->vcpu[i].stats_fd = -1;
		set->vcpu[i].group = config->group ? config->group[i] : 0;
		set->vcpu[i].view = config->view_of_group
					    ? config->view_of_group[set->vcpu[i].group]
					    : set->vcpu[i].group;
	}
	sigaction(KICK_SIGNAL, &kick, NULL);
	rc = create_all(set, config->group_cpus, err);
	set->cpuid = NULL;
	if (rc) {
		mb_vcpus_destroy(set);
		return rc;
	}
	*out = set;
	return 0;
}

/* Caller holds the lock, and has stored before why. */
static void kick(struct mb_vcpu *vcpu)
{
	if (!vcpu->inside)
		return;
	__atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vcpu->thread, KICK_SIGNAL);
}

/* Caller holds the lock. */
static void kick_all(struct mb_vcpus *set)
{
	/* Before immediate_exit: a thread that KVM turned back must see why. */
	__atomic_store_n(&set->request, true, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < set->n; i++)
		kick(&set->vcpu[i]);
}

void mb_vcpus_set_views(struct mb_vcpus *set, const uint8_t *view_of_group)
{
	pthread_mutex_lock(&set->lock);
	for (unsigned i = 0; i < set->n; i++) {
		struct mb_vcpu *vcpu = &set->vcpu[i];
		uint8_t view = view_of_group[vcpu->group];

		if (vcpu->view == view)
			continue;
		__atomic_store_n(&vcpu->view, view, __ATOMIC_SEQ_CST);
		kick(vcpu);
	}
	pthread_mutex_unlock(&set->lock);
}

void mb_vcpus_destroy(struct mb_vcpus *set)
{
	if (!set)
		return;
	pthread_mutex_lock(&set->lock);
	set->stop = true;
	kick_all(set);
	pthread_cond_broadcast(&set->go);
	pthread_mutex_unlock(&set->lock);
	for (unsigned i = 0; i < set->n; i++) {
		struct mb_vcpu *vcpu = &set->vcpu[i];

		if (vcpu->has_thread)
			pthread_join(vcpu->thread, NULL);
		if (vcpu->run)
			munmap(vcpu->run, mb_vm_host(set->vm)->vcpu_mmap_bytes);
		if (vcpu->stats_fd >= 0)
			close(vcpu->stats_fd);
		if (vcpu->fd >= 0)
			close(vcpu->fd);
	}
	mb_vcpu_power_on_finish(&set->power_on[0]);
	mb_vcpu_power_on_finish(&set->power_on[1]);
	pthread_cond_destroy(&set->out);
	pthread_cond_destroy(&set->go);
	pthread_mutex_destroy(&set->lock);
	free(set->supported);
	free(set);
}

/* Caller holds the lock. */
static void resume(struct mb_vcpus *set)
{
	if (!--set->pause_count) {
		__atomic_store_n(&set->request, false, __ATOMIC_SEQ_CST);
		pthread_cond_broadcast(&set->go);
	}
}

/* until: NULL: as long as it takes. */
static bool pause_until(struct mb_vcpus *set, const struct timespec *until)
{
	int rc = 0;

	pthread_mutex_lock(&set->lock);
	if (!set->pause_count++)
		kick_all(set);
	for (unsigned i = 0; i < set->n && !rc; i++) {
		while (set->vcpu[i].inside && !rc)
			rc = until ? pthread_cond_clockwait(
					     &set->out, &set->lock, CLOCK_MONOTONIC, until)
				   : pthread_cond_wait(&set->out, &set->lock);
	}
	if (rc)
		resume(set);
	pthread_mutex_unlock(&set->lock);
	return !rc;
}

void mb_vcpus_pause(struct mb_vcpus *set)
{
	pause_until(set, NULL);
}

bool mb_vcpus_pause_within(struct mb_vcpus *set, uint64_t timeout_ns)
{
	const uint64_t until_ns = mb_now_ns() + timeout_ns;
	const struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
		.tv_nsec = (long)(until_ns % 1000000000u)};

	return pause_until(set, &until);
}

void mb_vcpus_resume(struct mb_vcpus *set)
{
	pthread_mutex_lock(&set->lock);
	resume(set);
	pthread_mutex_unlock(&set->lock);
}

int mb_vcpus_reset(struct mb_vcpus *set)
{
	int rc = 0;

	for (unsigned i = 0; i < set->n && !rc; i++)
		rc = mb_vcpu_load_power_on(&set->vcpu[i], &set->power_on[i > 0]);
	pthread_mutex_lock(&set->lock);
	for (unsigned i = 0; i < set->n; i++)
		set->vcpu[i].halted = false;
	pthread_mutex_unlock(&set->lock);
	return rc;
}

void mb_vcpus_tell_stopped(struct mb_vcpus *set)
{
	/* EINVAL: a vCPU without that clock. Older than what we require, and only a courtesy: no matter. */
	for (unsigned i = 0; i < set->n; i++)
		mb_vcpu_ioctl(&set->vcpu[i], KVM_KVMCLOCK_CTRL, NULL);
}

unsigned mb_vcpus_count(const struct mb_vcpus *set)
{
	return set->n;
}

struct mb_vcpu *mb_vcpus_at(struct mb_vcpus *set, unsigned index)
{
	return &set->vcpu[index];
}

uint64_t mb_vcpus_first_run_ns(const struct mb_vcpus *set)
{
	return __atomic_load_n(&set->first_run_ns, __ATOMIC_RELAXED);
}

unsigned mb_vcpu_index(const struct mb_vcpu *vcpu)
{
	return vcpu->index;
}

unsigned mb_vcpu_group(const struct mb_vcpu *vcpu)
{
	return vcpu->group;
}

unsigned mb_vcpu_current_view(const struct mb_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->current_view, __ATOMIC_RELAXED);
}

uint64_t mb_vcpu_n_exits(const struct mb_vcpu *vcpu)
{
	return __atomic_load_n(&vcpu->n_exits, __ATOMIC_RELAXED);
}
