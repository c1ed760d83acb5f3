/* What the load generator and the stand-in upstream share: clock, sockets, the few HTTP/1.1 rules they need. */
#ifndef BENCH_HTTP_H
#define BENCH_HTTP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <arpa/inet.h>

#define NS_PER_S 1000000000ULL

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void refuse(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) die("calloc");
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Arms an absolute timer; a time already past fires at once. */
static void arm(int timer, uint64_t due_ns) {
    if (due_ns == 0) due_ns = 1; /* zero would disarm */
    struct itimerspec when = {{0, 0}, {(time_t)(due_ns / NS_PER_S), (long)(due_ns % NS_PER_S)}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL)) die("timerfd_settime");
}

static int make_timer(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (timer < 0) die("timerfd_create");
    return timer;
}

/* Fills the address of a UNIX socket (path given) or of a loopback port; returns its length. */
static socklen_t make_address(struct sockaddr_storage *storage, const char *path, int port) {
    memset(storage, 0, sizeof *storage);
    if (path) {
        struct sockaddr_un *un = (struct sockaddr_un *)storage;
        un->sun_family = AF_UNIX;
        if (strlen(path) >= sizeof un->sun_path) refuse("the socket path is too long");
        strcpy(un->sun_path, path);
        return sizeof *un;
    }
    struct sockaddr_in *in = (struct sockaddr_in *)storage;
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)port);
    in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *in;
}

static void set_nodelay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails harmlessly on UNIX sockets */
}

/* The value of a header inside a NUL-terminated header block, or NULL. `name` is like "\r\ncontent-length:". */
static const char *find_header(const char *block, const char *name) {
    const char *at = strcasestr(block, name);
    if (!at) return NULL;
    at += strlen(name);
    while (*at == ' ' || *at == '\t') at++;
    return at;
}

/* The number that follows `--name` or `fallback`; exits on anything that is not a number. */
static double number_argument(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || value < 0) {
        fprintf(stderr, "%s takes a number of at least 0, not '%s'\n", name, text);
        exit(2);
    }
    return value;
}
#endif
