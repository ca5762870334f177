/* Shifts the wall clock that Python reads in one process by the nanoseconds that stand in the file SOAK_CLOCK.
 *
 * Only calls from the interpreter are shifted: the kernel's own waits of the C++ below Ray know nothing of a shim. The
 * measuring client is left out: it compares its clock with the stamps of the kernel, which are not shifted.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;
static void *interpreter; /* where its code begins in memory */
static int (*real)(clockid_t, struct timespec *);

static void *code_of(void *address) {
    struct dl_find_object found;
    return _dl_find_object(address, &found) ? NULL : found.dlfo_map_start;
}

__attribute__((constructor)) static void start(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    char arguments[4096];
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, arguments, sizeof arguments);
    close(file);
    const char *name = getenv("SOAK_CLOCK");
    void *python = dlsym(RTLD_DEFAULT, "Py_BytesMain");
    if (!name || !python) return;
    if (size > 0 && memmem(arguments, (size_t)size, "sweep.client", 12)) return;
    file = open(name, O_RDONLY | O_CLOEXEC);
    void *content = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (content == MAP_FAILED) return;
    interpreter = code_of(python);
    offset = content;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real) start(); /* another library's constructor may ask before ours has run */
    int status = real(clock, now);
    if (status == 0 && clock == CLOCK_REALTIME && offset && *offset &&
        code_of(__builtin_return_address(0)) == interpreter) {
        int64_t shifted = now->tv_sec * 1000000000LL + now->tv_nsec + *offset;
        now->tv_sec = shifted / 1000000000LL;
        now->tv_nsec = shifted % 1000000000LL;
    }
    return status;
}
