/* A stand-in for an OpenAI-compatible engine, so that a gateway's own cost can be measured.
 *
 *   upstream (--port N | --socket PATH) [--delay-us D] [--chunks K] [--interval-us I] [--start-us S]
 *
 * POST anything: a chat completion, after D microseconds; a body with "stream": true is answered by K chunks, I
 * microseconds apart, then usage (when asked for) and [DONE]. GET /health, /v1/models, /stats (counts as JSON).
 * It listens after S microseconds, as an engine does that reads its weights first. One thread, one epoll; prints "listening PORT" when it accepts.
 */
#include "http.h"
#include <signal.h>

#define IN_BYTES (1 << 20)
#define OUT_BYTES (1 << 16)
#define MAX_FDS 4096

typedef struct {
    int fd, chunks_sent, is_open, is_stream, wants_usage, has_answer_due, has_head, is_closing;
    size_t in_len, out_len, out_done;
    uint64_t generation; /* a timer set for an earlier connection on the same descriptor must not fire for this one */
    char *in, *out;
} Connection;

typedef struct {
    uint64_t due_ns, generation;
    int fd;
} Timer;

static Connection *connections[MAX_FDS];
static Timer heap[MAX_FDS * 2];
static int heap_len, epoll_fd, timer_fd, num_chunks = 20;
static uint64_t delay_ns, interval_ns, next_generation = 1;
static uint64_t num_answers, num_streams, num_chunks_sent;

static void heap_push(Timer timer) {
    if (heap_len == MAX_FDS * 2) refuse("too many timers");
    int at = heap_len++;
    while (at && heap[(at - 1) / 2].due_ns > timer.due_ns) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = timer;
}

static Timer heap_pop(void) {
    Timer top = heap[0], last = heap[--heap_len];
    int at = 0;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1].due_ns < heap[child].due_ns) child++;
        if (heap[child].due_ns >= last.due_ns) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void schedule(Connection *c, uint64_t due_ns) {
    heap_push((Timer){due_ns, c->generation, c->fd});
    if (heap[0].due_ns == due_ns) arm(timer_fd, due_ns);
}

static void close_connection(Connection *c) {
    close(c->fd); /* epoll forgets a closed descriptor by itself */
    c->is_open = 0;
}

/* Sends what is buffered; what the socket does not take waits for EPOLLOUT. */
static void flush_out(Connection *c) {
    while (c->out_done < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_done, c->out_len - c->out_done, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) {
                close_connection(c);
                return;
            }
            struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.fd = c->fd};
            epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
            return;
        }
        c->out_done += (size_t)n;
    }
    c->out_len = c->out_done = 0;
    if (c->is_closing) close_connection(c);
}

static void put(Connection *c, const char *bytes, size_t len) {
    if (c->out_len + len > OUT_BYTES) refuse("an answer outgrew its buffer");
    memcpy(c->out + c->out_len, bytes, len);
    c->out_len += len;
}

static void put_answer(Connection *c, int status, const char *body) {
    char head[256];
    int n = snprintf(head, sizeof head,
                     "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status,
                     status == 200 ? "OK" : "Refused", strlen(body));
    put(c, head, (size_t)n);
    put(c, body, strlen(body));
}

static void put_event(Connection *c, const char *event) {
    char frame[640];
    int n = snprintf(frame, sizeof frame, "%zx\r\n%s\r\n", strlen(event), event);
    put(c, frame, (size_t)n);
}

#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":%d,\"total_tokens\":%d}"

static void send_next_chunk(Connection *c) {
    char event[512];
    if (!c->has_head) {
        static const char head[] =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        put(c, head, sizeof head - 1);
        c->has_head = 1;
    }
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
             "\"model\":\"stand-in\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" coal%d\"},"
             "\"finish_reason\":null}]}\n\n",
             c->chunks_sent);
    put_event(c, event);
    num_chunks_sent++;
    if (++c->chunks_sent < num_chunks) {
        flush_out(c);
        return;
    }
    put_event(c, "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                 "\"model\":\"stand-in\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
    if (c->wants_usage) {
        snprintf(event, sizeof event,
                 "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                 "\"model\":\"stand-in\",\"choices\":[]," USAGE "}\n\n",
                 num_chunks, 12 + num_chunks);
        put_event(c, event);
    }
    put_event(c, "data: [DONE]\n\n");
    put(c, "0\r\n\r\n", 5);
    c->has_answer_due = 0;
    flush_out(c);
}

static void send_whole(Connection *c) {
    char body[512];
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"stand-in\","
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The fire is tended, and the "
             "coal is counted.\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}",
             num_chunks, 12 + num_chunks);
    put_answer(c, 200, body);
    c->has_answer_due = 0;
    flush_out(c);
}

/* The answer is due: all of it, or one chunk, and the rest by timer when chunks are paced. */
static void answer(Connection *c) {
    if (!c->is_stream) {
        num_answers++;
        send_whole(c);
        return;
    }
    if (!c->chunks_sent) num_streams++;
    do send_next_chunk(c);
    while (c->is_open && c->has_answer_due && !interval_ns);
    if (c->is_open && c->has_answer_due) schedule(c, now_ns() + interval_ns);
}

/* Whether the body holds `"name": true`, spaces allowed after the colon. */
static int is_true(const char *body, const char *name) {
    const char *at = strstr(body, name);
    if (!at) return 0;
    at += strlen(name);
    while (*at == ' ' || *at == ':') at++;
    return !strncmp(at, "true", 4);
}

/* Takes whole requests from the buffer, one at a time: the next waits until the present one is answered. */
static void serve_buffered(Connection *c) {
    while (c->is_open && !c->has_answer_due && c->in_len) {
        c->in[c->in_len] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return;
        *end = 0;
        const char *length = find_header(c->in, "\r\ncontent-length:");
        const char *keep = find_header(c->in, "\r\nconnection:");
        const char *coding = find_header(c->in, "\r\ntransfer-encoding:");
        size_t total = (size_t)(end - c->in) + 4 + (length ? strtoul(length, NULL, 10) : 0);
        if (coding || total >= IN_BYTES) {
            c->is_closing = 1;
            put_answer(c, coding ? 501 : 413, "{}");
            flush_out(c);
            return;
        }
        *end = '\r';
        if (c->in_len < total) return;
        char after = c->in[total];
        c->in[total] = 0;
        const char *line_end = strstr(c->in, "\r\n");
        int is_old = line_end - c->in > 8 && !strncmp(line_end - 8, "HTTP/1.0", 8);
        c->is_closing = keep ? !strncasecmp(keep, "close", 5) : is_old;
        if (!strncmp(c->in, "POST ", 5)) {
            c->is_stream = is_true(end + 4, "\"stream\"");
            c->wants_usage = is_true(end + 4, "\"include_usage\"");
            c->chunks_sent = c->has_head = 0;
            c->has_answer_due = 1;
        } else if (!strncmp(c->in, "GET /stats", 10)) {
            char body[200];
            snprintf(body, sizeof body, "{\"answers\":%llu,\"streams\":%llu,\"chunks\":%llu}",
                     (unsigned long long)num_answers, (unsigned long long)num_streams,
                     (unsigned long long)num_chunks_sent);
            put_answer(c, 200, body);
        } else if (!strncmp(c->in, "GET /v1/models", 14)) {
            put_answer(c, 200, "{\"object\":\"list\",\"data\":[{\"id\":\"stand-in\",\"object\":\"model\"}]}");
        } else {
            put_answer(c, 200, "{\"status\":\"ok\"}");
        }
        c->in[total] = after;
        memmove(c->in, c->in + total, c->in_len - total);
        c->in_len -= total;
        if (!c->has_answer_due) flush_out(c);
        else if (delay_ns) schedule(c, now_ns() + delay_ns);
        else answer(c);
    }
}

static void read_requests(Connection *c) {
    for (;;) {
        if (c->in_len == IN_BYTES) return;
        ssize_t n = recv(c->fd, c->in + c->in_len, IN_BYTES - c->in_len, 0);
        if (n > 0) {
            int is_short = (size_t)n < IN_BYTES - c->in_len;
            c->in_len += (size_t)n;
            if (is_short) break;
        } else if (n < 0 && errno == EINTR) {
            continue;
        } else if (n < 0 && errno == EAGAIN) {
            break;
        } else {
            close_connection(c);
            return;
        }
    }
    serve_buffered(c);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        set_nodelay(fd);
        Connection *c = connections[fd];
        if (!c) {
            c = connections[fd] = allocate(1, sizeof *c);
            c->in = allocate(IN_BYTES + 1, 1);
            c->out = allocate(OUT_BYTES, 1);
        }
        char *in = c->in, *out = c->out;
        *c = (Connection){.fd = fd, .is_open = 1, .generation = next_generation++, .in = in, .out = out};
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

static void fire_timers(void) {
    uint64_t fired;
    if (read(timer_fd, &fired, sizeof fired) < 0 && errno != EAGAIN) die("timerfd");
    while (heap_len && heap[0].due_ns <= now_ns()) {
        Timer timer = heap_pop();
        Connection *c = connections[timer.fd];
        if (!c->is_open || c->generation != timer.generation || !c->has_answer_due) continue;
        answer(c);
        if (c->is_open && !c->has_answer_due) serve_buffered(c);
    }
    if (heap_len) arm(timer_fd, heap[0].due_ns);
}

int main(int argc, char **argv) {
    const char *path = NULL;
    int port = 0;
    double start_us = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--socket")) path = argv[i + 1];
        else if (!strcmp(argv[i], "--port")) port = (int)number_argument(argv[i], argv[i + 1]);
        else if (!strcmp(argv[i], "--delay-us")) delay_ns = (uint64_t)(number_argument(argv[i], argv[i + 1]) * 1e3);
        else if (!strcmp(argv[i], "--interval-us")) interval_ns = (uint64_t)(number_argument(argv[i], argv[i + 1]) * 1e3);
        else if (!strcmp(argv[i], "--start-us")) start_us = number_argument(argv[i], argv[i + 1]);
        else if (!strcmp(argv[i], "--chunks")) num_chunks = (int)number_argument(argv[i], argv[i + 1]);
        else refuse("usage: upstream (--port N | --socket PATH) [--delay-us D] [--chunks K] [--interval-us I] [--start-us S]");
    }
    if (num_chunks < 1 || num_chunks > 64) refuse("--chunks takes 1 to 64"); /* a stream must fit its buffer */
    signal(SIGPIPE, SIG_IGN);
    pid_t parent = getppid();
    struct timespec start = {(time_t)(start_us / 1e6), (long)((uint64_t)start_us % 1000000 * 1000)};
    nanosleep(&start, NULL);
    struct sockaddr_storage address;
    socklen_t address_len = make_address(&address, path, port);
    int listener = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, address_len)) die("bind");
    if (listen(listener, 1024)) die("listen");
    if (!path) {
        getsockname(listener, (struct sockaddr *)&address, &address_len);
        port = ntohs(((struct sockaddr_in *)&address)->sin_port);
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = make_timer();
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    e.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    printf("listening %d\n", port);
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, 1000);
        if (getppid() != parent) return 0; /* nobody is left to stop us */
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            if (fd == timer_fd) {
                fire_timers();
                continue;
            }
            Connection *c = connections[fd];
            if (c->is_open && events[i].events & EPOLLOUT) {
                struct epoll_event in_only = {.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &in_only);
                flush_out(c);
            }
            if (c->is_open && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read_requests(c);
        }
    }
}
