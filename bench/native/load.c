/* A load generator for one HTTP/1.1 endpoint: closed loop, or open loop at a fixed rate.
 *
 *   load (--port N | --socket PATH) --body FILE [--path P] [--header 'K: V']... [--connections N] [--requests M]
 *        [--duration-s S] [--rate R] [--warmup W] [--samples FILE]
 *
 * Every response must have status 200 and a whole body; an event stream must hold "[DONE]". Latency runs from the
 * request's first byte (open loop: from its scheduled time, so a slow server cannot thin its own load) to the last
 * byte of the body; first byte means the first byte of the body. One thread, one epoll. The result is JSON on
 * standard output; --samples writes each request's pair (latency, first byte) as two uint32 of 0.1 microseconds.
 */
#include "http.h"
#include <signal.h>
#include <sys/resource.h>

#define BUFFER_BYTES (1 << 18)
#define MAX_ERRORS 1000
#define STALL_NS (30 * NS_PER_S) /* no byte from anybody for so long: report what there is */

typedef enum { IDLE, HEAD, BY_LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER } Phase;

typedef struct {
    int fd, status, is_stream, has_done, is_last, done_matched, is_reused;
    Phase phase;
    size_t len, request_sent;
    uint64_t left, started_ns, first_byte_ns;
    char buffer[BUFFER_BYTES + 1];
} Connection;

static const char *socket_path;
static int port, epoll_fd, num_connections = 1;
static char *request;
static size_t request_len;
static uint64_t max_requests = 1000, num_warmup, interval_ns, deadline_ns, first_due_ns;
static uint64_t num_started, num_finished, num_measured, num_errors, num_reconnects, num_late, bytes_in;
static uint64_t measured_from_ns, last_finish_ns;
static double cpu_from_s;
static uint32_t *latencies, *first_bytes;
static char first_error[300];
static Connection **all, **idle;
static int num_idle;

static double own_cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void connect_to_server(Connection *c) {
    struct sockaddr_storage address;
    socklen_t address_len = make_address(&address, socket_path, port);
    c->fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    if (connect(c->fd, (struct sockaddr *)&address, address_len)) die("connect");
    set_nodelay(c->fd);
    if (fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK)) die("fcntl");
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
    c->phase = IDLE;
    c->len = 0;
    c->is_reused = 0;
}

static void reconnect(Connection *c) {
    close(c->fd);
    connect_to_server(c);
    num_reconnects++;
}

static void finish(Connection *c, const char *error, const char *detail) {
    uint64_t now = now_ns();
    num_finished++;
    last_finish_ns = now;
    if (error) {
        num_errors++;
        if (!*first_error) snprintf(first_error, sizeof first_error, "%s %.200s", error, detail);
    } else if (num_finished > num_warmup) {
        uint64_t latency = (now - c->started_ns) / 100, first = (c->first_byte_ns - c->started_ns) / 100;
        latencies[num_measured] = latency > UINT32_MAX ? UINT32_MAX : (uint32_t)latency;
        first_bytes[num_measured] = first > UINT32_MAX ? UINT32_MAX : (uint32_t)first;
        num_measured++;
    }
    if (num_finished == num_warmup) {
        measured_from_ns = now;
        cpu_from_s = own_cpu_s();
    }
    c->phase = IDLE;
    c->len = 0;
    c->is_reused = 1;
    idle[num_idle++] = c;
}

static void fail(Connection *c, const char *error, const char *detail) {
    finish(c, error, detail);
    reconnect(c);
}

static void send_rest(Connection *c) {
    while (c->request_sent < request_len) {
        ssize_t n = send(c->fd, request + c->request_sent, request_len - c->request_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) {
            struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
            epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
            return;
        }
        if (n < 0) {
            if (c->request_sent || !c->is_reused) {
                fail(c, "the request was cut", strerror(errno));
                return;
            }
            reconnect(c); /* the server closed an idle connection, as it may: send again on a fresh one */
            c->phase = HEAD;
            continue;
        }
        c->request_sent += (size_t)n;
    }
}

static void start(Connection *c, uint64_t started_ns) {
    num_started++;
    c->started_ns = started_ns;
    c->first_byte_ns = 0;
    c->request_sent = c->len = 0;
    c->status = c->is_stream = c->has_done = c->is_last = c->done_matched = 0;
    c->phase = HEAD;
    send_rest(c);
}

/* Follows "[DONE]" across reads and chunk borders. */
static void look_for_done(Connection *c, const char *bytes, size_t len) {
    static const char mark[] = "[DONE]";
    for (size_t i = 0; i < len && !c->has_done; i++) {
        c->done_matched = bytes[i] == mark[c->done_matched] ? c->done_matched + 1 : bytes[i] == mark[0];
        c->has_done = c->done_matched == 6;
    }
}

static void take_body(Connection *c, const char *bytes, size_t len) {
    if (!len) return;
    if (!c->first_byte_ns) c->first_byte_ns = now_ns();
    if (c->is_stream) look_for_done(c, bytes, len);
}

static void end_response(Connection *c, const char *tail) {
    char status[32];
    snprintf(status, sizeof status, "status %d", c->status);
    if (c->status != 200) fail(c, status, tail);
    else if (!c->first_byte_ns) fail(c, "an empty body", "");
    else if (c->is_stream && !c->has_done) fail(c, "a stream without its end", tail);
    else if (c->is_last) {
        finish(c, NULL, "");
        reconnect(c);
    } else finish(c, NULL, "");
}

/* Reads the head; returns whether the body begins. */
static int take_head(Connection *c, size_t *used) {
    c->buffer[c->len] = 0;
    char *end = strstr(c->buffer, "\r\n\r\n");
    if (!end) {
        if (c->len == BUFFER_BYTES) fail(c, "a head too long", "");
        return 0;
    }
    *end = 0;
    if (sscanf(c->buffer, "HTTP/1.%*d %d", &c->status) != 1) {
        fail(c, "not HTTP", c->buffer);
        return 0;
    }
    const char *length = find_header(c->buffer, "\r\ncontent-length:");
    const char *coding = find_header(c->buffer, "\r\ntransfer-encoding:");
    const char *type = find_header(c->buffer, "\r\ncontent-type:");
    const char *keep = find_header(c->buffer, "\r\nconnection:");
    c->is_stream = type && !strncasecmp(type, "text/event-stream", 17);
    c->is_last = keep && !strncasecmp(keep, "close", 5);
    if (coding && !strncasecmp(coding, "chunked", 7)) c->phase = CHUNK_SIZE;
    else if (length) {
        c->phase = BY_LENGTH;
        c->left = strtoull(length, NULL, 10);
    } else {
        fail(c, "a body of unknown length", c->buffer);
        return 0;
    }
    *used = (size_t)(end - c->buffer) + 4;
    return 1;
}

/* Takes what the buffer holds; keeps the rest for the next read. */
static void parse(Connection *c) {
    size_t at = 0;
    if (c->phase == HEAD && !take_head(c, &at)) return;
    for (;;) {
        size_t have = c->len - at;
        char *bytes = c->buffer + at;
        if (c->phase == BY_LENGTH || c->phase == CHUNK_DATA) {
            size_t n = have < c->left ? have : c->left;
            take_body(c, bytes, n);
            c->left -= n;
            at += n;
            if (c->left) break;
            if (c->phase == BY_LENGTH) {
                c->buffer[c->len] = 0;
                end_response(c, bytes);
                return;
            }
            c->phase = CHUNK_END;
        } else {
            char *line_end = memchr(bytes, '\n', have);
            if (!line_end) {
                if (have > 100) {
                    fail(c, "a chunk without a size", "");
                    return;
                }
                break;
            }
            at += (size_t)(line_end - bytes) + 1;
            if (c->phase == CHUNK_END) c->phase = CHUNK_SIZE;
            else if (c->phase == CHUNK_SIZE) {
                c->left = strtoull(bytes, NULL, 16);
                c->phase = c->left ? CHUNK_DATA : TRAILER;
            } else if (line_end - bytes <= 1) {
                end_response(c, "");
                return;
            }
        }
    }
    memmove(c->buffer, c->buffer + at, c->len - at);
    c->len -= at;
}

static void read_response(Connection *c) {
    ssize_t n = recv(c->fd, c->buffer + c->len, BUFFER_BYTES - c->len, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (c->phase == IDLE) reconnect(c);
        else if (c->phase == HEAD && !c->len && c->is_reused && (n == 0 || errno == ECONNRESET)) {
            reconnect(c); /* closed as idle just when we sent: the one case in which HTTP lets a client repeat */
            c->phase = HEAD;
            c->request_sent = 0;
            send_rest(c);
        } else fail(c, "the answer was cut", n < 0 ? strerror(errno) : "");
        return;
    }
    bytes_in += (uint64_t)n;
    c->len += (size_t)n;
    if (c->phase == IDLE) {
        num_errors++; /* the connection already waits among the idle ones */
        if (!*first_error) strcpy(first_error, "bytes that nobody asked for");
        reconnect(c);
    } else parse(c);
}

static int has_more_to_start(uint64_t now) {
    return num_started < max_requests + num_warmup && (!deadline_ns || now < deadline_ns) && num_errors < MAX_ERRORS;
}

/* Starts what is due on the connections that are free. */
static void start_due(int timer) {
    uint64_t now = now_ns();
    while (num_idle && has_more_to_start(now)) {
        uint64_t due = now;
        if (interval_ns) {
            due = first_due_ns + num_started * interval_ns;
            if (due > now) {
                arm(timer, due);
                return;
            }
            if (now - due > interval_ns) num_late++;
        }
        start(idle[--num_idle], due);
        now = now_ns();
    }
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print_quantiles(const char *name, uint32_t *values, uint64_t n) {
    qsort(values, n, sizeof *values, compare);
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += values[i];
    printf("\"%s\":{", name);
    if (n)
        printf("\"mean\":%.1f,\"min\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f", sum / (double)n / 10,
               values[0] / 10.0, values[(n - 1) / 2] / 10.0, values[(n - 1) * 9 / 10] / 10.0,
               values[(n - 1) * 99 / 100] / 10.0, values[n - 1] / 10.0);
    printf("}");
}

static char *read_file(const char *path, size_t *len) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    char *bytes = allocate(1 << 20, 1);
    *len = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

int main(int argc, char **argv) {
    const char *url_path = "/v1/chat/completions", *body_path = NULL, *samples_path = NULL;
    static char headers[8192];
    double duration_s = 0;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--socket")) socket_path = value;
        else if (!strcmp(name, "--port")) port = (int)number_argument(name, value);
        else if (!strcmp(name, "--path")) url_path = value;
        else if (!strcmp(name, "--body")) body_path = value;
        else if (!strcmp(name, "--samples")) samples_path = value;
        else if (!strcmp(name, "--connections")) num_connections = (int)number_argument(name, value);
        else if (!strcmp(name, "--requests")) max_requests = (uint64_t)number_argument(name, value);
        else if (!strcmp(name, "--warmup")) num_warmup = (uint64_t)number_argument(name, value);
        else if (!strcmp(name, "--duration-s")) duration_s = number_argument(name, value);
        else if (!strcmp(name, "--rate")) interval_ns = (uint64_t)(1e9 / number_argument(name, value));
        else if (!strcmp(name, "--header")) {
            if (strlen(headers) + strlen(value) + 3 > sizeof headers) refuse("too many headers");
            strcat(strcat(headers, value), "\r\n");
        } else refuse("load: unknown argument; its source begins with the usage");
    }
    if (!body_path || (!socket_path && !port)) refuse("load needs --body and --port or --socket");
    if (num_connections < 1 || num_connections > 1024) refuse("--connections takes 1 to 1024");
    if (max_requests < 1 || max_requests > 5000000) refuse("--requests takes 1 to 5000000");
    signal(SIGPIPE, SIG_IGN);

    size_t body_len;
    char *body = read_file(body_path, &body_len);
    request = allocate(body_len + sizeof headers + 1024, 1);
    request_len = (size_t)sprintf(request,
                                  "POST %.500s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                                  "%sContent-Length: %zu\r\n\r\n",
                                  url_path, port, headers, body_len);
    memcpy(request + request_len, body, body_len);
    request_len += body_len;

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int timer = make_timer();
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &e);
    latencies = allocate(max_requests, sizeof *latencies);
    first_bytes = allocate(max_requests, sizeof *first_bytes);
    all = allocate((size_t)num_connections, sizeof *all);
    idle = allocate((size_t)num_connections, sizeof *idle);
    for (int i = 0; i < num_connections; i++) {
        all[i] = allocate(1, sizeof(Connection));
        connect_to_server(all[i]);
        idle[num_idle++] = all[i];
    }

    first_due_ns = measured_from_ns = last_finish_ns = now_ns();
    if (duration_s > 0) deadline_ns = first_due_ns + (uint64_t)(duration_s * 1e9);
    cpu_from_s = own_cpu_s();
    uint64_t last_byte_ns = now_ns();
    start_due(timer);
    while (num_idle < num_connections || has_more_to_start(now_ns())) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, 1000);
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) {
                uint64_t fired;
                if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) die("timerfd");
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                struct epoll_event in_only = {.events = EPOLLIN, .data.ptr = c};
                epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &in_only);
                send_rest(c);
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                last_byte_ns = now_ns();
                read_response(c);
            }
        }
        if (num_idle < num_connections && now_ns() - last_byte_ns > STALL_NS) {
            num_errors += (uint64_t)(num_connections - num_idle);
            if (!*first_error) strcpy(first_error, "no byte for 30 s");
            break;
        }
        start_due(timer);
    }

    if (samples_path) {
        FILE *samples = fopen(samples_path, "wb");
        if (!samples) die(samples_path);
        for (uint64_t i = 0; i < num_measured; i++) {
            fwrite(&latencies[i], sizeof *latencies, 1, samples);
            fwrite(&first_bytes[i], sizeof *first_bytes, 1, samples);
        }
        if (fclose(samples)) die(samples_path);
    }
    double elapsed_s = (double)(last_finish_ns - measured_from_ns) / 1e9;
    printf("{\"n\":%llu,\"started\":%llu,\"finished\":%llu,\"errors\":%llu,\"reconnects\":%llu,\"late\":%llu,",
           (unsigned long long)num_measured, (unsigned long long)num_started, (unsigned long long)num_finished,
           (unsigned long long)num_errors, (unsigned long long)num_reconnects, (unsigned long long)num_late);
    for (char *at = first_error; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < 32) *at = ' ';
    printf("\"first_error\":\"%s\",\"bytes_in\":%llu,\"elapsed_s\":%.6f,\"requests_per_s\":%.1f,\"own_cpu_s\":%.6f,",
           first_error, (unsigned long long)bytes_in, elapsed_s, elapsed_s > 0 ? (double)num_measured / elapsed_s : 0.0,
           own_cpu_s() - cpu_from_s);
    print_quantiles("latency_us", latencies, num_measured);
    printf(",");
    print_quantiles("first_byte_us", first_bytes, num_measured);
    printf("}\n");
    return 0;
}
