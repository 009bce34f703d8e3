/* A power cut for a test: what no fsync has made durable is lost.

   Preloaded into a process. Keeps, in POWER_SHADOW, every file below POWER_ROOT as its last fsync or
   fdatasync left it, and every directory's entries as its last fsync left them; all of it is durable when the
   process begins. At the sync number POWER_AT (from 1) the process dies before that sync is done. The test
   then puts the files together from the shadow: the most that a disk may lose. Files are known by inode
   number and time of birth, so that a number that is given again is another file. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *root, *shadow;
static long at, count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int key(int fd, char *out, int *directory) {
    struct statx s;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME | STATX_TYPE, &s)) return -1;
    *directory = S_ISDIR(s.stx_mode);
    sprintf(out, "%llu-%lld-%u", (unsigned long long)s.stx_ino, (long long)s.stx_btime.tv_sec,
            s.stx_btime.tv_nsec);
    return S_ISDIR(s.stx_mode) || S_ISREG(s.stx_mode) ? 0 : -1;
}

static void keep(int fd) {
    char name[80], path[PATH_MAX], part[PATH_MAX], from[64];
    int directory;
    if (key(fd, name, &directory)) return;
    snprintf(path, sizeof path, "%s/%s", shadow, name);
    snprintf(part, sizeof part, "%s/.part", shadow);
    FILE *out = fopen(part, "w");
    if (!out) abort();
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    if (directory) {
        DIR *entries = opendir(from);
        struct dirent *e;
        while (entries && (e = readdir(entries))) {
            char inner[80];
            int is, child;
            if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
            child = openat(dirfd(entries), e->d_name, O_RDONLY | O_NOFOLLOW);
            if (child < 0) continue;
            if (!key(child, inner, &is)) fprintf(out, "%s %s\n", inner, e->d_name);
            close(child);
        }
        if (entries) closedir(entries);
    } else {
        char block[65536];
        size_t n;
        FILE *in = fopen(from, "r"); /* opened anew: the offset of fd stays */
        while (in && (n = fread(block, 1, sizeof block, in))) fwrite(block, 1, n, out);
        if (in) fclose(in);
    }
    fclose(out);
    if (rename(part, path)) abort();
}

static void everything(const char *path) {
    int fd = open(path, O_RDONLY | O_NOFOLLOW);
    if (fd < 0) return;
    keep(fd);
    DIR *entries = fdopendir(fd);
    struct dirent *e;
    if (!entries) { close(fd); return; }
    while ((e = readdir(entries))) {
        char inner[PATH_MAX];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        everything(inner);
    }
    closedir(entries);
}

__attribute__((constructor)) static void begin(void) {
    const char *a = getenv("POWER_AT");
    root = getenv("POWER_ROOT");
    shadow = getenv("POWER_SHADOW");
    if (!root || !shadow || !a) { root = NULL; return; }
    at = atol(a);
    unsetenv("LD_PRELOAD"); /* for this process only */
    everything(root);
}

static int synced(int fd, const char *real) {
    int (*done)(int) = (int (*)(int))dlsym(RTLD_NEXT, real);
    char link[64], path[PATH_MAX];
    ssize_t n;
    if (!root) return done(fd);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n < 0 || strncmp(path, root, strlen(root))) return done(fd);
    pthread_mutex_lock(&mutex);
    if (++count == at) kill(getpid(), SIGKILL);
    int result = done(fd);
    if (!result) keep(fd);
    pthread_mutex_unlock(&mutex);
    return result;
}

int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }
