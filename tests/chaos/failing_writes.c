/* Let chosen writes of a process fail: loaded before libc (LD_PRELOAD), told by arm() which, by tests/chaos/driver.py.
 *
 * A rule is a line "calls pattern": letters of calls (o open for writing, w write, s sync, n a new name: rename, link,
 * symlink, mkdir) and a pattern of fnmatch(3) for the path below the root. The first call that fits a rule fails, once;
 * a write is done by half, and the next ones to that path fail, as on a full disk. Every call on a path below the root
 * is logged: a line "call path", with "! rule" before it where it failed. What makes system calls without libc is not
 * seen: safetensors' own rename, to a temporary name that is synced and renamed through libc afterwards.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define RULES 2048

static struct { char *calls, *pattern, *broken; } rules[RULES]; /* broken: the path of the call that failed */
static int count, code, log_to = -1;
static char *root;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* From now on the first call that fits each line of `text` fails with `error`. */
void arm(const char *folder, const char *text, int error, int log)
{
    char *lines = strdup(text);
    for (char *line = strtok(lines, "\n"); line && count < RULES; line = strtok(NULL, "\n")) {
        char *space = strchr(line, ' ');
        *space = 0;
        rules[count].calls = line, rules[count++].pattern = space + 1;
    }
    code = error, log_to = log, root = strdup(folder);
}

enum { NO, FIRST, AGAIN };

/* Whether this call on this path is to fail; errno says with what. */
static int fails(char call, const char *path)
{
    int found = NO, before = errno;
    size_t length = root ? strlen(root) : 0;
    if (!root || !path || strncmp(path, root, length) || path[length] != '/')
        return 0;
    path += length + 1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count && !found; i++)
        if (rules[i].broken)
            found = call == 'w' && !strcmp(rules[i].broken, path) ? AGAIN : NO;
        else if (strchr(rules[i].calls, call) && !fnmatch(rules[i].pattern, path, 0)) {
            found = FIRST, rules[i].broken = strdup(path);
            dprintf(log_to, "! %s %s\n", rules[i].calls, rules[i].pattern);
        }
    dprintf(log_to, "%c %s\n", call, path);
    pthread_mutex_unlock(&lock);
    errno = found ? code : before;
    return found;
}

static int fails_open(char call, int descriptor)
{
    char name[64], path[PATH_MAX];
    if (!root || descriptor == log_to)
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return fails(call, path);
}

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...)                                        \
    {                                                                                 \
        va_list more;                                                                 \
        va_start(more, flags);                                                        \
        mode_t mode = va_arg(more, mode_t);                                           \
        va_end(more);                                                                 \
        return (flags & O_ACCMODE) != O_RDONLY && fails('o', path) ? -1 : REAL(name)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                  \
    int name(int folder, const char *path, int flags, ...)                            \
    {                                                                                 \
        va_list more;                                                                 \
        va_start(more, flags);                                                        \
        mode_t mode = va_arg(more, mode_t);                                           \
        va_end(more);                                                                 \
        return (flags & O_ACCMODE) != O_RDONLY && fails('o', path) ? -1 : REAL(name)(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int to, const void *bytes, size_t size)
{
    int how = fails_open('w', to);
    return how == NO ? REAL(write)(to, bytes, size) : how == FIRST && size > 1 ? REAL(write)(to, bytes, size / 2) : -1;
}

#define FAILING(type, failed, name, parameters, arguments, condition)                 \
    type name parameters { return condition ? failed : REAL(name) arguments; }

#define DATA(type, name, parameters, arguments) FAILING(type, -1, name, parameters, arguments, fails_open('w', to))
DATA(ssize_t, writev, (int to, const struct iovec *parts, int n), (to, parts, n))
DATA(ssize_t, pwrite, (int to, const void *bytes, size_t n, off_t at), (to, bytes, n, at))
DATA(ssize_t, pwrite64, (int to, const void *bytes, size_t n, off64_t at), (to, bytes, n, at))
DATA(int, ftruncate, (int to, off_t n), (to, n))
DATA(int, ftruncate64, (int to, off64_t n), (to, n))
#include <sys/sendfile.h>
DATA(ssize_t, sendfile, (int to, int from, off_t *at, size_t n), (to, from, at, n))
DATA(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t n), (to, from, at, n))
DATA(ssize_t, copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned f), (from, a, to, b, n, f))

FAILING(int, code, posix_fallocate, (int to, off_t at, off_t n), (to, at, n), fails_open('w', to))
FAILING(int, code, posix_fallocate64, (int to, off64_t at, off64_t n), (to, at, n), fails_open('w', to))
FAILING(int, -1, fsync, (int to), (to), fails_open('s', to))
FAILING(int, -1, fdatasync, (int to), (to), fails_open('s', to))
FAILING(int, -1, rename, (const char *from, const char *to), (from, to), fails('n', to))
FAILING(int, -1, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), fails('n', to))
FAILING(int, -1, renameat2, (int a, const char *from, int b, const char *to, unsigned f), (a, from, b, to, f), fails('n', to))
FAILING(int, -1, link, (const char *from, const char *to), (from, to), fails('n', to))
FAILING(int, -1, linkat, (int a, const char *from, int b, const char *to, int f), (a, from, b, to, f), fails('n', to))
FAILING(int, -1, symlink, (const char *from, const char *to), (from, to), fails('n', to))
FAILING(int, -1, symlinkat, (const char *from, int b, const char *to), (from, b, to), fails('n', to))
FAILING(int, -1, mkdir, (const char *path, mode_t mode), (path, mode), fails('n', path))
