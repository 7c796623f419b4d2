/* Fails one system call of the process that preloads it, or all from that one on, so that a test can try every write in turn.
 *
 * fault_arm(at, error, sticky, below): the at-th call (from 1) that changes a file below a folder fails with this errno; with sticky set, all after it
 * fail too, as on a full disk. fault_count() is how many such calls there were, fault_fired() whether one failed.
 * A write that fails may have written a part: half of it is written first where it is longer than one byte and a disk is full.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long at, count, fired;
static int failure, sticky;
static char below[4096];

void fault_arm(long number, int error, int all, const char *folder) {
    at = number;
    failure = error;
    sticky = all;
    count = fired = 0;
    snprintf(below, sizeof below, "%s", folder);
}

long fault_count(void) { return count; }
long fault_fired(void) { return fired; }

static int inside(const char *path) {
    char full[8192];
    if (!at || !path) return 0;
    if (path[0] != '/') {
        char here[4096];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(full, sizeof full, "%s/%s", here, path);
        path = full;
    }
    return strncmp(path, below, strlen(below)) == 0;
}

static int open_inside(int handle) {
    char link[64], path[4096];
    if (!at) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* Whether this call is to fail; sets errno. */
static int fails(int is_inside) {
    if (!is_inside) return 0;
    count++;
    if (count != at && !(sticky && count > at)) return 0;
    fired = 1;
    errno = failure;
    return 1;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(write);
    if (fails(open_inside(handle))) {
        if (failure == ENOSPC && size > 1 && count == at) return real(handle, data, size / 2);
        return -1;
    }
    return real(handle, data, size);
}

ssize_t pwrite(int handle, const void *data, size_t size, off_t place) {
    REAL(pwrite);
    if (fails(open_inside(handle))) {
        if (failure == ENOSPC && size > 1) real(handle, data, size / 2, place);
        errno = failure;
        return -1;
    }
    return real(handle, data, size, place);
}

ssize_t pwrite64(int handle, const void *data, size_t size, off64_t place) {
    REAL(pwrite64);
    if (fails(open_inside(handle))) {
        if (failure == ENOSPC && size > 1) real(handle, data, size / 2, place);
        errno = failure;
        return -1;
    }
    return real(handle, data, size, place);
}

ssize_t writev(int handle, const struct iovec *parts, int many) {
    REAL(writev);
    return fails(open_inside(handle)) ? -1 : real(handle, parts, many);
}

size_t fwrite(const void *data, size_t size, size_t many, FILE *stream) {
    REAL(fwrite);
    return fails(open_inside(fileno(stream))) ? 0 : real(data, size, many, stream);
}

int fsync(int handle) {
    REAL(fsync);
    return fails(open_inside(handle)) ? -1 : real(handle);
}

int fdatasync(int handle) {
    REAL(fdatasync);
    return fails(open_inside(handle)) ? -1 : real(handle);
}

int ftruncate(int handle, off_t size) {
    REAL(ftruncate);
    return fails(open_inside(handle)) ? -1 : real(handle, size);
}

int ftruncate64(int handle, off64_t size) {
    REAL(ftruncate64);
    return fails(open_inside(handle)) ? -1 : real(handle, size);
}

int rename(const char *source, const char *target) {
    REAL(rename);
    return fails(inside(target)) ? -1 : real(source, target);
}

/* Nothing needs room to be removed: on a full disk these two work. */
int unlink(const char *path) {
    REAL(unlink);
    return failure != ENOSPC && fails(inside(path)) ? -1 : real(path);
}

int rmdir(const char *path) {
    REAL(rmdir);
    return failure != ENOSPC && fails(inside(path)) ? -1 : real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(inside(path)) ? -1 : real(path, mode);
}

/* Opening for writing makes or empties a file, which a full disk or a failing one refuses. */
int open(const char *path, int flags, ...) {
    REAL(open);
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    return flags & (O_CREAT | O_TRUNC) && fails(inside(path)) ? -1 : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    va_list rest;
    va_start(rest, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;
    va_end(rest);
    return flags & (O_CREAT | O_TRUNC) && fails(inside(path)) ? -1 : real(path, flags, mode);
}
