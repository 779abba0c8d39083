/* Loaded into the roles under test (LD_PRELOAD): steps their clock, moves a host name, and lets look-ups hang, while they
 * run.
 *
 * What to do stands in a file that is named by the process's id, in the directory that FAULTS_TOLD names: three numbers of
 * 64 bits, the seconds to add to the clock, the last byte of the address of MOVING, and whether looking that up hangs. The
 * file is mapped, so that a change is seen at once, and reading it costs nothing. Clocks that only measure
 * (CLOCK_MONOTONIC) are left alone, as an operator's or NTP's step leaves them alone. Names under HANGING are never
 * answered, as if their name server dropped every query and the resolver never gave up.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MOVING "moving.test"
#define HANGING ".hangs.test"

struct told {
    int64_t seconds;
    int64_t host;
    int64_t hangs;
};

static const struct told nothing = {0, 1, 0};
static const volatile struct told *told = &nothing;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_gettimeofday)(struct timeval *restrict, void *restrict);
static int (*real_getaddrinfo)(const char *restrict, const char *restrict, const struct addrinfo *restrict,
                               struct addrinfo **restrict);

static void find_real(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_gettimeofday =
        (int (*)(struct timeval *restrict, void *restrict))dlsym(RTLD_NEXT, "gettimeofday");
    real_getaddrinfo =
        (int (*)(const char *restrict, const char *restrict, const struct addrinfo *restrict,
                 struct addrinfo **restrict))dlsym(RTLD_NEXT, "getaddrinfo");
}

__attribute__((constructor)) static void begin(void) {
    if (!real_clock_gettime) find_real();
    const char *directory = getenv("FAULTS_TOLD");
    if (!directory) return;
    char path[4096];
    snprintf(path, sizeof path, "%s/%d", directory, (int)getpid());
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0 || write(file, &nothing, sizeof nothing) != sizeof nothing) abort();
    void *mapped = mmap(NULL, sizeof nothing, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) abort();
    close(file);
    told = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock_gettime) find_real();
    int failed = real_clock_gettime(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += told->seconds;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    if (!real_gettimeofday) find_real();
    int failed = real_gettimeofday(now, zone);
    if (!failed) now->tv_sec += told->seconds;
    return failed;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}

static int hangs(const char *node) {
    size_t length = strlen(node), suffix = strlen(HANGING);
    return length > suffix && strcmp(node + length - suffix, HANGING) == 0;
}

int getaddrinfo(const char *restrict node, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict found) {
    if (!real_getaddrinfo) find_real();
    char address[sizeof "127.0.0.255"];
    while (node && hangs(node)) sleep(60);
    if (node && strcmp(node, MOVING) == 0) {
        while (told->hangs) usleep(10000);
        snprintf(address, sizeof address, "127.0.0.%d", (int)(told->host & 255));
        node = address;
    }
    return real_getaddrinfo(node, service, hints, found);
}
