/* Makes fsync and fdatasync fail with EIO while the file named by STOKER_TEST_FSYNC_FAULT exists. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int is_faulty(void) {
    const char *path = getenv("STOKER_TEST_FSYNC_FAULT");
    return path != NULL && access(path, F_OK) == 0;
}

static int call(const char *name, int fd) {
    if (is_faulty()) {
        errno = EIO;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }
