/* A libcuda.so.1 without a GPU, for tests of the driver backend: memory is the
   host's, and a stream is a queue that runs as late as CUDA allows, so what is
   changed or freed too early is found. It checks what it is called with, and
   aborts where a real driver would corrupt something.

   A module is text: a line of anything, then lines `kernel NAME ARGUMENT_BYTES
   STATIC_SHARED PTX_VERSION THREADS`. All kernels take { u64 address; u32 count;
   u32 addend; ... } and add to numbers. The environment says what the machine
   is: FAKE_VERSION, FAKE_DEVICES, FAKE_INIT, FAKE_CAPABILITY, FAKE_BYTES. */
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

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread void* current;
static int context;      /* its address is the context */
static CUresult broken;  /* after an illegal address all calls fail */

#define REQUIRE(condition) \
    do { if (!(condition)) { fprintf(stderr, "fake libcuda: line %d: %s\n", __LINE__, #condition); abort(); } } while (0)

static int setting(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text ? atoi(text) : otherwise;
}

/* --- What a test sees and does --------------------------------------------- */

static char log_text[1 << 16];
static const char* refused_call;
static CUresult refused_code;
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

static CUresult refusal(const char* call) {
    if (broken) return broken;
    if (!refused_call || strcmp(refused_call, call) || refused_after-- > 0) return SUCCESS;
    refused_call = NULL;
    if (refused_code == 700) broken = 700;
    return refused_code;
}

/* Begins a function of the driver: it is alone, and may be told to fail. */
#define BEGIN(needs_context)                                          \
    pthread_mutex_lock(&lock);                                        \
    CUresult result = refusal(__func__);                              \
    if (!result && needs_context && current != &context) result = INVALID_CONTEXT; \
    if (!result) {
#define END                                                           \
    }                                                                 \
    pthread_mutex_unlock(&lock);                                      \
    return result;

/* --- Memory ------------------------------------------------------------------ */

struct memory { char* begin; size_t bytes; int on_gpu; struct memory* next; };
static struct memory* memories;
static size_t used;

static struct memory* memory_of(u64 address, size_t bytes, int on_gpu) {
    for (struct memory* m = memories; m; m = m->next)
        if (m->on_gpu == on_gpu && address >= (u64)m->begin && address + bytes <= (u64)m->begin + m->bytes) return m;
    return NULL;
}

static char* allocate(size_t bytes, int on_gpu) {
    struct memory* m = malloc(sizeof *m);
    size_t room = (bytes + 255) / 256 * 256;
    *m = (struct memory){aligned_alloc(256, room), bytes, on_gpu, memories};
    memset(m->begin, 0xcd, room);
    memories = m;
    return m->begin;
}

static void release(u64 address, int on_gpu) {
    for (struct memory** m = &memories; *m; m = &(*m)->next)
        if ((u64)(*m)->begin == address) {
            struct memory* gone = *m;
            REQUIRE(gone->on_gpu == on_gpu);
            if (on_gpu) used -= gone->bytes;
            *m = gone->next;
            free(gone->begin);
            free(gone);
            return;
        }
    REQUIRE(!"freed what is not there");
}

/* --- The streams ------------------------------------------------------------- */

struct function { char name[64]; size_t args_bytes; int shared, ptx, threads, dynamic, loaded; };
struct module { int count; struct function functions[64]; };
struct event { int timed; u64 recorded, past; struct stream* on; };
struct args { u64 address; unsigned count, addend; };

/* One thing that a stream does: a copy, a launch, an event or a wait for one. */
struct work { void* to; const void* from; size_t bytes; struct event* event; struct event* awaited; u64 until;
              struct function* launched; struct args args; struct work* next; };
/* The first stream is what kernels run on; there may be a second for copies. */
struct stream { struct work *first, **last; };
static struct stream streams[2] = {{NULL, &streams[0].first}, {NULL, &streams[1].first}};
/* How many handed out are the first stream of their context, and how many are not. */
static int num_mains, num_asides;
static struct stream* const main_stream = &streams[0];
static int capturing;
struct graph { int count; struct work work[512]; };
static struct graph* captured;

static int is_stream(const void* on) {
    return on == &streams[0] || (on == &streams[1] && num_asides);
}

static void enqueue_on(struct stream* on, struct work work) {
    if (capturing && on == main_stream) {
        captured->work[captured->count++] = work;
        return;
    }
    *on->last = malloc(sizeof work);
    **on->last = work;
    (*on->last)->next = NULL;
    on->last = &(*on->last)->next;
}

static void enqueue(struct work work) { enqueue_on(main_stream, work); }

/* Does what a stream does next, after what that waits for. */
static void run_first(struct stream* on) {
    struct work* work = on->first;
    while (work->awaited && work->awaited->past < work->until) run_first(work->awaited->on);
    on->first = work->next;
    if (!on->first) on->last = &on->first;
    if (work->bytes) memcpy(work->to, work->from, work->bytes);
    if (work->event) work->event->past++;
    if (work->launched) {
        REQUIRE(memory_of(work->args.address, 4 * work->args.count, 1));
        for (unsigned i = 0; i < work->args.count; i++) ((unsigned*)work->args.address)[i] += work->args.addend;
    }
    free(work);
}

static void run_all(struct stream* on) {
    while (on->first) run_first(on);
}

static int is_idle(void) { return !streams[0].first && !streams[1].first; }

/* --- Devices ------------------------------------------------------------------ */

CUresult cuGetErrorName(CUresult code, const char** text) {
    *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
    *text = code == 700 ? "an illegal memory access was encountered"
          : code == NO_DEVICE ? "no CUDA-capable device is detected" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}
CUresult cuDriverGetVersion(int* version) { *version = setting("FAKE_VERSION", 13000); return SUCCESS; }
#ifndef OLD
CUresult cuInit(unsigned flags) { return flags ? INVALID_VALUE : (CUresult)setting("FAKE_INIT", 0); }
CUresult cuDeviceGetCount(int* count) { *count = setting("FAKE_DEVICES", 1); return SUCCESS; }
CUresult cuDeviceGet(int* device, int ordinal) { *device = ordinal; return SUCCESS; }
CUresult cuDeviceGetName(char* room, int bytes, int device) {
    snprintf(room, bytes, "Fake %d", device);
    return SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char* room, int bytes, int device) {
    snprintf(room, bytes, "0000:%02x:00.0", device + 0x17);
    return SUCCESS;
}
CUresult cuDeviceGetUuid_v2(char* uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = (char)(0xf0 + i + device);
    return SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, unsigned attribute, int device) {
    int capability = setting("FAKE_CAPABILITY", 90);
    *value = attribute == 16 ? 132 : attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10
           : attribute == 97 ? 232448 : -1;
    return device < 0 ? INVALID_VALUE : SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = setting("FAKE_BYTES", 256 << 20);
    return device < 0 ? INVALID_VALUE : SUCCESS;
}

static int retained;
CUresult cuDevicePrimaryCtxRetain(void** made, int device) {
    BEGIN(0) *made = &context; retained++; (void)device; END
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    (void)device;
    pthread_mutex_lock(&lock);
    REQUIRE(retained-- > 0);
    int left = 0;
    for (struct memory* m = memories; m; m = m->next) left++;
    note("closed with %d memories\n", left);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
CUresult cuCtxSetCurrent(void* made) { current = made; return SUCCESS; }

/* --- Copies ------------------------------------------------------------------- */

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* all) {
    BEGIN(1) *all = setting("FAKE_BYTES", 256 << 20); *free_bytes = *all - used; END
}
CUresult cuMemAlloc_v2(u64* address, size_t bytes) {
    BEGIN(1)
    if (!bytes) result = INVALID_VALUE;
    else if (used + bytes > (size_t)setting("FAKE_BYTES", 256 << 20)) result = OUT_OF_MEMORY;
    else { *address = (u64)allocate(bytes, 1); used += bytes; }
    END
}
CUresult cuMemFree_v2(u64 address) {
    /* A real driver may wait here; ours is to have waited before. */
    BEGIN(1) REQUIRE(is_idle()); release(address, 1); END
}
CUresult cuMemHostAlloc(void** made, size_t bytes, unsigned flags) {
    /* Portable; perhaps for kernels to read; never write-combining, whose address is another. */
    BEGIN(1) REQUIRE(flags == 1 || flags == 3); *made = allocate(bytes, 0); END
}
CUresult cuMemFreeHost(void* pointer) {
    pthread_mutex_lock(&lock);
    struct memory* m = memory_of((u64)pointer, 1, 0);
    REQUIRE(m && m->begin == pointer);
    for (int i = 0; i < 2; i++)
        for (struct work* work = broken ? NULL : streams[i].first; work; work = work->next) {
            REQUIRE((char*)work->to < m->begin || (char*)work->to >= m->begin + m->bytes);
            REQUIRE((char*)work->from < m->begin || (char*)work->from >= m->begin + m->bytes);
        }
    release((u64)pointer, 0);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
static CUresult copy(u64 to, int to_gpu, u64 from, int from_gpu, size_t bytes) {
    REQUIRE(bytes && memory_of(to, bytes, to_gpu) && memory_of(from, bytes, from_gpu));
    if (capturing) return CAPTURE_UNSUPPORTED;
    enqueue((struct work){.to = (void*)to, .from = (void*)from, .bytes = bytes});
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, void* on) {
    BEGIN(1) REQUIRE(on == main_stream); result = copy(to, 1, (u64)from, 0, bytes); END
}
CUresult cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, void* on) {
    BEGIN(1) REQUIRE(on == main_stream); result = copy((u64)to, 0, from, 1, bytes); END
}
/* By the addresses: of the GPU, or of pinned memory. */
CUresult cuMemcpyAsync(u64 to, u64 from, size_t bytes, void* on) {
    BEGIN(1)
    REQUIRE(is_stream(on) && bytes);
    REQUIRE(memory_of(to, bytes, 1) || memory_of(to, bytes, 0));
    REQUIRE(memory_of(from, bytes, 1) || memory_of(from, bytes, 0));
    if (capturing && on == main_stream) result = CAPTURE_UNSUPPORTED;
    else enqueue_on(on, (struct work){.to = (void*)to, .from = (void*)from, .bytes = bytes});
    END
}

/* --- Streams and events --------------------------------------------------------- */

CUresult cuStreamCreate(struct stream** made, unsigned flags) {
    BEGIN(1)
    REQUIRE(flags == 1);
    if (num_mains < retained) { *made = &streams[0]; num_mains++; }
    else { *made = &streams[1]; num_asides++; }
    END
}
CUresult cuStreamDestroy_v2(struct stream* made) { BEGIN(1) REQUIRE(is_stream(made) && !made->first); made == main_stream ? num_mains-- : num_asides--; END }
CUresult cuStreamSynchronize(struct stream* made) { BEGIN(1) REQUIRE(is_stream(made)); run_all(made); END }
CUresult cuStreamWaitEvent(struct stream* on, struct event* event, unsigned flags) {
    BEGIN(1)
    REQUIRE(is_stream(on) && !flags && !(capturing && on == main_stream));
    enqueue_on(on, (struct work){.awaited = event, .until = event->recorded});
    END
}
CUresult cuEventCreate(struct event** made, unsigned flags) {
    BEGIN(1) *made = calloc(1, sizeof **made); (*made)->timed = !(flags & 2); END
}
CUresult cuEventDestroy_v2(struct event* event) { BEGIN(1) run_all(&streams[0]); run_all(&streams[1]); free(event); END }
CUresult cuEventRecord(struct event* event, struct stream* on) {
    BEGIN(1)
    REQUIRE(is_stream(on) && (event->past == event->recorded || event->on == on));
    event->on = on;
    event->recorded++;
    enqueue_on(on, (struct work){.event = event});
    END
}
CUresult cuEventSynchronize(struct event* event) {
    BEGIN(1) while (event->past < event->recorded) run_first(event->on); END
}
/* Whoever asks again and again sees that it gets on. */
CUresult cuEventQuery(struct event* event) {
    BEGIN(1)
    if (event->past < event->recorded) { run_first(event->on); result = NOT_READY; }
    END
}
CUresult cuEventElapsedTime_v2(float* milliseconds, struct event* start, struct event* end) {
    BEGIN(1)
    REQUIRE(start->timed && end->timed && start->past == start->recorded && end->past == end->recorded);
    *milliseconds = 1.5f;
    END
}

/* --- Other GPUs ------------------------------------------------------------------- */

static int peer_access;
CUresult cuDeviceCanAccessPeer(int* can, int device, int peer) {
    REQUIRE(device != peer);
    *can = setting("FAKE_PEERS", 1);
    return SUCCESS;
}
CUresult cuCtxEnablePeerAccess(void* peer, unsigned flags) {
    BEGIN(1) REQUIRE(peer == &context && !flags); if (peer_access++) result = 704; else note("peer access\n"); END
}
struct handle { u64 address; char rest[56]; };
CUresult cuIpcGetMemHandle(struct handle* handle, u64 address) {
    BEGIN(1) REQUIRE(memory_of(address, 1, 1)); *handle = (struct handle){.address = address}; END
}
CUresult cuIpcOpenMemHandle_v2(u64* address, struct handle handle, unsigned flags) {
    BEGIN(1) REQUIRE(flags == 1 && memory_of(handle.address, 1, 1)); *address = handle.address; note("opened\n"); END
}
CUresult cuIpcCloseMemHandle(u64 address) {
    /* Kernels that are enqueued may still write there. */
    BEGIN(1) REQUIRE(is_idle() && memory_of(address, 1, 1)); note("let go\n"); END
}

/* --- Kernels --------------------------------------------------------------------- */

CUresult cuModuleLoadData(struct module** made, const char* image) {
    BEGIN(1)
    REQUIRE((u64)image % 8 == 0);
    struct module* module = calloc(1, sizeof *module);
    for (const char* line = strchr(image, '\n'); line; line = strchr(line + 1, '\n')) {
        struct function* f = &module->functions[module->count];
        if (!strncmp(line, "\nkernel ", 8) && sscanf(line, "\nkernel %63s %zu %d %d %d", f->name, &f->args_bytes, &f->shared, &f->ptx, &f->threads) == 5)
            module->count++;
    }
    if (!module->count) { free(module); result = NO_BINARY; }
    *made = module;
    END
}
CUresult cuModuleUnload(struct module* module) { BEGIN(1) REQUIRE(is_idle()); free(module); END }
CUresult cuModuleGetFunctionCount(unsigned* count, struct module* module) { BEGIN(1) *count = module->count; END }
CUresult cuModuleEnumerateFunctions(struct function** functions, unsigned count, struct module* module) {
    BEGIN(1) for (unsigned i = 0; i < count; i++) functions[i] = &module->functions[i]; END
}
CUresult cuFuncGetName(const char** name, struct function* function) { BEGIN(1) *name = function->name; END }
CUresult cuFuncLoad(struct function* function) { BEGIN(1) function->loaded = 1; END }
CUresult cuFuncGetParamInfo(struct function* function, size_t index, size_t* offset, size_t* bytes) {
    BEGIN(1) *offset = 0; *bytes = function->args_bytes; if (index) result = INVALID_VALUE; END
}
CUresult cuFuncGetAttribute(int* value, unsigned attribute, struct function* function) {
    BEGIN(1)
    *value = attribute == 0 ? function->threads : attribute == 1 ? function->shared
           : attribute == 5 ? function->ptx : -1;
    END
}
CUresult cuFuncSetAttribute(struct function* function, unsigned attribute, int value) {
    BEGIN(1)
    REQUIRE(attribute == 8 || (attribute == 9 && value == 100));
    if (attribute == 9) result = SUCCESS;
    else if (function->shared + value > 232448) result = INVALID_VALUE;
    else function->dynamic = value;
    END
}

struct attribute { unsigned id, pad; union { char room[64]; int value; } value; };
struct config { unsigned grid[3], block[3], shared; void* stream; struct attribute* attributes; unsigned count; };
CUresult cuLaunchKernelEx(const struct config* config, struct function* function, void** arguments, void** extra) {
    BEGIN(1)
    REQUIRE(config->stream == main_stream && !extra && function->loaded);
    REQUIRE(config->block[0] <= (unsigned)function->threads && config->block[1] == 1 && config->block[2] == 1);
    REQUIRE(config->shared <= (unsigned)function->dynamic);
    REQUIRE(config->count == 0 || (config->count == 1 && config->attributes->id == 6 && config->attributes->value.value == 1));
    REQUIRE(config->count == (function->ptx >= 90));
    struct work work = {.launched = function};
    memcpy(&work.args, arguments[0], sizeof work.args);
    enqueue(work);
    note("%s %s %u,%u,%u x %u shared %u%s\n", capturing ? "capture" : "launch", function->name, config->grid[0],
         config->grid[1], config->grid[2], config->block[0], config->shared, config->count ? " dependent" : "");
    END
}
CUresult cuTensorMapEncodeTiled(u64* map, unsigned kind, unsigned rank, void* address, const u64* extents,
                                const u64* strides, const unsigned* boxes, const unsigned* steps, unsigned interleave,
                                unsigned swizzle, unsigned promotion, unsigned fill) {
    BEGIN(1)
    REQUIRE(kind == 9 && rank == 2 && steps[0] == 1 && steps[1] == 1 && !interleave && swizzle == 3 && !fill);
    memset(map, 0, 128);
    u64 seen[] = {(u64)address, extents[0], extents[1], strides[0], boxes[0], boxes[1], promotion};
    memcpy(map, seen, sizeof seen);
    END
}

/* --- Graphs ---------------------------------------------------------------------- */

CUresult cuStreamBeginCapture_v2(void* on, unsigned mode) {
    BEGIN(1) REQUIRE(on == main_stream && mode == 1 && !capturing); capturing = 1; captured = calloc(1, sizeof *captured); END
}
CUresult cuStreamEndCapture(void* on, struct graph** graph) {
    /* Whatever comes of it, this is the end of the capture. */
    REQUIRE(capturing);
    capturing = 0;
    BEGIN(1) REQUIRE(on == main_stream); *graph = captured; END
}
CUresult cuGraphInstantiateWithFlags(struct graph** made, struct graph* graph, u64 flags) {
    BEGIN(1) REQUIRE(!flags); *made = malloc(sizeof **made); **made = *graph; note("graph of %d\n", graph->count); END
}
CUresult cuGraphDestroy(struct graph* graph) { BEGIN(1) free(graph); END }
CUresult cuGraphUpload(struct graph* graph, void* on) { BEGIN(1) REQUIRE(graph->count && on == main_stream); END }
CUresult cuGraphLaunch(struct graph* graph, void* on) {
    BEGIN(1)
    REQUIRE(on == main_stream);
    for (int i = 0; i < graph->count; i++) enqueue(graph->work[i]);
    note("replay %d\n", graph->count);
    END
}
CUresult cuGraphExecDestroy(struct graph* graph) { BEGIN(1) free(graph); note("graph gone\n"); END }
#endif
