// What the fake libcuda knows: contexts, memory, and streams whose work runs as
// late as CUDA allows. Handles are never freed, so whoever uses one that is gone
// is found.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned CUresult;
typedef unsigned long long u64;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_CONTEXT = 201,
       NO_BINARY = 209, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };
enum { CAPTURE_THREAD_LOCAL = 1 };

#define REQUIRE(condition) \
    do { if (!(condition)) { fprintf(stderr, "fake libcuda: line %d: %s\n", __LINE__, #condition); abort(); } } while (0)

static u64 setting(const char* name, u64 otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

/* --- What a test sees and does --------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char log_text[1 << 16];
static const char* refused_call;
static CUresult refused_code, broken; /* after an illegal address all calls fail */
static int refused_after;

static void note(const char* format, ...) {
    size_t used = strlen(log_text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(log_text + used, sizeof log_text - used, format, arguments);
    va_end(arguments);
}

/* Takes the log. */
void fake_take_log(char* room, size_t bytes) {
    pthread_mutex_lock(&lock);
    snprintf(room, bytes, "%s", log_text);
    log_text[0] = 0;
    pthread_mutex_unlock(&lock);
}

/* Lets a call fail, once so many of it went well. */
void fake_refuse(const char* call, CUresult code, int after) {
    refused_call = call;
    refused_code = code;
    refused_after = after;
}

/* Calls that may wait for the kernels of all GPUs. */
static int memory_calls;
int fake_memory_calls(void) { return memory_calls; }

static CUresult refusal(const char* call) {
    if (broken) return broken;
    if (!refused_call || strcmp(refused_call, call) || refused_after-- > 0) return SUCCESS;
    refused_call = NULL;
    if (refused_code == 700) broken = 700;
    return refused_code;
}

/* --- Contexts ----------------------------------------------------------------- */

enum { DEVICES_MAX = 16 };
/* The primary context of a device, and how much of it lives in it. */
struct context { int retained; size_t used; int streams, events, modules, graphs; };
static struct context contexts[DEVICES_MAX];
static __thread struct context* current;

/* Begins a function of the driver: it is alone, and may be told to fail. */
#define BEGIN(needs_context)                                                              \
    pthread_mutex_lock(&lock);                                                            \
    CUresult result = refusal(__func__);                                                  \
    if (!result && needs_context && !(current && current->retained)) result = INVALID_CONTEXT; \
    if (!result) {
#define END                                                           \
    }                                                                 \
    pthread_mutex_unlock(&lock);                                      \
    return result;

/* --- Memory --------------------------------------------------------------------- */

#ifdef EMULATED
/* The emulator's, see its cpp/launch.h: memory between guards, and real kernels. */
struct launch_call { const char* kernel; const void* args; size_t args_bytes; unsigned threads, grid[3], shared_bytes; };
struct machine { u64 seed; unsigned shared_bytes_max, is_hopper; };
void* emulator_alloc(size_t bytes);
void emulator_free(void* memory);
int emulator_find(const char* kernel, size_t* args_bytes, unsigned* threads);
const char* emulator_run(const struct launch_call* calls, size_t count, const struct machine* machine);
#endif

struct memory { char* begin; size_t bytes; int on_gpu; struct context* context; struct memory* next; };
static struct memory* memories;

/* All that is asked for lies in it; -1 for either kind. */
static struct memory* memory_of(u64 address, size_t bytes, int on_gpu) {
    for (struct memory* m = memories; m; m = m->next)
        if ((on_gpu < 0 || m->on_gpu == on_gpu) && address >= (u64)m->begin && address + bytes <= (u64)m->begin + m->bytes)
            return m;
    return NULL;
}

static char* allocate(size_t bytes, int on_gpu) {
    struct memory* m = malloc(sizeof *m);
#ifdef EMULATED
    char* begin = emulator_alloc(bytes);
    REQUIRE(begin);
#else
    size_t room = (bytes + 255) / 256 * 256;
    char* begin = aligned_alloc(256, room);
    memset(begin, 0xcd, room);
#endif
    *m = (struct memory){begin, bytes, on_gpu, current, memories};
    memories = m;
    return m->begin;
}

static void release(u64 address, int on_gpu) {
    for (struct memory** m = &memories; *m; m = &(*m)->next)
        if ((u64)(*m)->begin == address) {
            struct memory* gone = *m;
            REQUIRE(gone->on_gpu == on_gpu && gone->context == current);
            if (on_gpu) current->used -= gone->bytes;
            *m = gone->next;
#ifdef EMULATED
            emulator_free(gone->begin);
#else
            free(gone->begin);
#endif
            free(gone);
            return;
        }
    REQUIRE(!"freed what is not there");
}

/* --- Streams ---------------------------------------------------------------------- */

struct module { int is_gone; struct context* context; int count; struct function* functions; };
struct function { char name[64]; size_t args_bytes; int shared, ptx, threads, dynamic, loaded; struct module* module; };
struct event { int is_gone, timed; struct context* context; u64 recorded, past; struct stream* on; };
struct args { u64 address; unsigned count, addend; };
enum { ARGS_MAX = 4096 };

/* One thing that a stream does: a copy, a launch, an event or a wait for one. */
struct work {
    void* to; const void* from; size_t bytes;
    struct event* event; struct event* awaited; u64 until;
    struct function* launched; unsigned grid[3], threads, shared; void* args;
    struct work* next;
};
struct stream { int is_gone; struct context* context; struct work *first, **last; struct graph* captured; pthread_t capturer; struct stream* next; };
struct graph { int is_gone; struct context* context; size_t count; struct work work[2048]; };
static struct stream* streams;

#define LIVES(handle) REQUIRE((handle) && !(handle)->is_gone && (handle)->context == current)

/* A thread that captures may do nothing that a replay would not do again. */
static void require_no_capture(void) {
    for (struct stream* s = streams; s; s = s->next) REQUIRE(!s->captured || !pthread_equal(s->capturer, pthread_self()));
}

static void enqueue(struct stream* on, struct work work) {
    LIVES(on);
    if (on->captured) {
        /* What another thread enqueues meanwhile would become part of the graph. */
        REQUIRE(pthread_equal(on->capturer, pthread_self()) && work.launched);
        REQUIRE(on->captured->count < sizeof on->captured->work / sizeof work);
        on->captured->work[on->captured->count++] = work;
        return;
    }
    *on->last = malloc(sizeof work);
    **on->last = work;
    (*on->last)->next = NULL;
    on->last = &(*on->last)->next;
}

#ifdef EMULATED
/* Launches that follow each other overlap, as far as each kernel lets the next. */
static void run_kernels(struct work* first, size_t count) {
    static u64 runs;
    struct machine machine = {setting("FAKE_SEED", 1) * 0x9E3779B97F4A7C15ull + (++runs << 20),
                              setting("FAKE_CAPABILITY", 90) == 90 ? 227 * 1024 : 99 * 1024,
                              setting("FAKE_CAPABILITY", 90) == 90};
    struct launch_call* calls = calloc(count, sizeof *calls);
    for (size_t i = 0; i < count; i++, first = first->next) {
        REQUIRE(!first->launched->module->is_gone);
        calls[i] = (struct launch_call){first->launched->name, first->args, first->launched->args_bytes, first->threads,
                                        {first->grid[0], first->grid[1], first->grid[2]}, first->shared};
    }
    const char* problem = emulator_run(calls, count, &machine);
    if (*problem) { fprintf(stderr, "fake libcuda: %s\n", problem); abort(); }
    free(calls);
}
#else
static void run_kernels(struct work* first, size_t count) {
    for (size_t i = 0; i < count; i++, first = first->next) {
        struct args* args = first->args;
        REQUIRE(!first->launched->module->is_gone && memory_of(args->address, 4 * args->count, 1));
        for (unsigned j = 0; j < args->count; j++) ((unsigned*)args->address)[j] += args->addend;
    }
}
#endif

/* Does what a stream does next, after what that waits for. */
static void run_first(struct stream* on) {
    struct work* work = on->first;
    while (work->awaited && work->awaited->past < work->until) run_first(work->awaited->on);
    size_t count = 0;
    for (struct work* next = work; next && next->launched; next = next->next) count++;
    run_kernels(work, count);
    if (work->bytes) {
        REQUIRE(memory_of((u64)work->to, work->bytes, -1) && memory_of((u64)work->from, work->bytes, -1));
        memcpy(work->to, work->from, work->bytes);
    }
    if (work->event) work->event->past++;
    for (size_t i = 0; i < (count ? count : 1); i++) {
        struct work* done = on->first;
        on->first = done->next;
        free(done);
    }
    if (!on->first) on->last = &on->first;
}

static void run_all(struct stream* on) {
    while (on->first) run_first(on);
}

/* True if nothing of the context is left to do. */
static int is_idle(void) {
    for (struct stream* s = streams; s; s = s->next)
        if (s->context == current && s->first) return 0;
    return 1;
}
