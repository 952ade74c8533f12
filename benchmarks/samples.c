// Where a process is whenever some CPU time has passed: the addresses of its instructions. Linux on x86-64 and aarch64.
//
//   cc -shared -fPIC -O2 -o samples.so samples.c
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>
#include <ucontext.h>

#define EXPORTED __attribute__((visibility("default")))

static uint64_t* addresses;
static size_t capacity;
static volatile size_t count;

static void take(int number, siginfo_t* information, void* context) {
    const ucontext_t* interrupted = context;
    (void)number;
    (void)information;
    if (count == capacity) return;
#if defined(__x86_64__)
    addresses[count++] = (uint64_t)interrupted->uc_mcontext.gregs[REG_RIP];
#else
    addresses[count++] = (uint64_t)interrupted->uc_mcontext.pc;
#endif
}

static int set_timer(int microseconds) {
    const struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    return setitimer(ITIMER_PROF, &timer, NULL);
}

// Takes samples into `to`, at most `most`. The system may take fewer than it is asked for. Returns 0 if all is well.
EXPORTED int start(uint64_t* to, size_t most, int microseconds) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_RESTART};
    action.sa_sigaction = take;
    addresses = to;
    capacity = most;
    count = 0;
    return sigaction(SIGPROF, &action, NULL) != 0 || set_timer(microseconds) != 0;
}

// Returns how many there are.
EXPORTED size_t stop(void) {
    set_timer(0);
    return count;
}
