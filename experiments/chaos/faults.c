/* Disk faults: an LD_PRELOAD library that fails, or ends the process, from the n-th call beneath one folder on.

   It intercepts calls of programs and libraries, but not the C library's own (e.g. in fread) and no memory maps. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, FULL, BROKEN, UNREADABLE };

static char folder[4096];
static size_t folder_length;
static int kind = NOTHING;
static long first, writes, reads;

/* Lets calls beneath the folder fail from the n-th on: 1 SIGKILL, 2 ENOSPC, 3 EIO of writes, 4 EIO of reads. */
void chaos_arm(const char *path, int what, long after) {
    folder_length = 0;
    strncpy(folder, path, sizeof folder - 1);
    writes = reads = 0;
    kind = what;
    first = after;
    folder_length = strlen(folder);
}

long chaos_calls(int reading) { return reading ? reads : writes; }

static int beneath(const char *path) {
    return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static int struck(int reading) {
    long number = __atomic_fetch_add(reading ? &reads : &writes, 1, __ATOMIC_SEQ_CST);
    if (number < first || kind == NOTHING || reading != (kind == UNREADABLE)) return 0;
    if (kind == KILL) kill(getpid(), SIGKILL);
    errno = kind == FULL ? ENOSPC : EIO;
    return 1;
}

static int file_struck(int file, int reading) {
    char link[32], path[4096];
    if (!folder_length) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return beneath(path) && struck(reading);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_FILE(type, name, reading, parameters, ...) \
    type name parameters { REAL(name); return file_struck(file, reading) ? -1 : real(__VA_ARGS__); }

ON_FILE(ssize_t, write, 0, (int file, const void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pwrite, 0, (int file, const void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pwrite64, 0, (int file, const void *data, size_t size, off64_t at), file, data, size, at)
ON_FILE(ssize_t, writev, 0, (int file, const struct iovec *parts, int count), file, parts, count)
ON_FILE(int, fsync, 0, (int file), file)
ON_FILE(int, fdatasync, 0, (int file), file)
ON_FILE(ssize_t, read, 1, (int file, void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pread, 1, (int file, void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pread64, 1, (int file, void *data, size_t size, off64_t at), file, data, size, at)

size_t fwrite(const void *data, size_t size, size_t n, FILE *stream) {
    REAL(fwrite);
    return file_struck(fileno(stream), 0) ? 0 : real(data, size, n, stream);
}

int fflush(FILE *stream) {
    REAL(fflush);
    return stream && file_struck(fileno(stream), 0) ? EOF : real(stream);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return beneath(to) && kind != FULL && struck(0) ? -1 : real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return beneath(path) && kind != FULL && struck(0) ? -1 : real(path);
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return (flags & O_CREAT) && beneath(path) && struck(0) ? -1 : real(path, flags, mode); \
    }

OPENS(open)
OPENS(open64)
