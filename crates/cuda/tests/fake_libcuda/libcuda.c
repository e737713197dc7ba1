/* A libcuda.so.1 without a GPU, for tests of the driver backend: memory is the
   host's, and a stream is a queue that runs as late as CUDA allows, so what is
   changed or freed too early is found. It checks what it is called with, and
   aborts where a real driver would corrupt something or refuse it.

   A module is text: a line of anything, then lines `kernel NAME ARGUMENT_BYTES
   STATIC_SHARED PTX_VERSION THREADS`. All kernels take { u64 address; u32 count;
   u32 addend; ... } and add to numbers. With -DEMULATED they are those of the
   emulator, and lines are `kernel NAME`. The environment says what the machine
   is: FAKE_VERSION, FAKE_DEVICES, FAKE_INIT, FAKE_CAPABILITY, FAKE_SMS,
   FAKE_BYTES, FAKE_PEERS. */
#include "work.h"

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
static int is_device(int device) { return device >= 0 && device < (int)setting("FAKE_DEVICES", 1); }
CUresult cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return is_device(ordinal) ? SUCCESS : INVALID_VALUE;
}
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
    *value = attribute == 16 ? (int)setting("FAKE_SMS", 132) : attribute == 75 ? capability / 10
           : attribute == 76 ? capability % 10 : attribute == 97 ? capability == 90 ? 232448 : 101376 : -1;
    return is_device(device) ? SUCCESS : INVALID_VALUE;
}
CUresult cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = setting("FAKE_BYTES", 256 << 20);
    return is_device(device) ? SUCCESS : INVALID_VALUE;
}

CUresult cuDevicePrimaryCtxRetain(struct context** made, int device) {
    BEGIN(0) REQUIRE(is_device(device)); *made = &contexts[device]; contexts[device].retained++; END
}
CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    struct context* closed = &contexts[device];
    REQUIRE(closed->retained-- > 0);
    int left = 0;
    for (struct memory* m = memories; m; m = m->next) left += m->context == closed;
    if (!closed->retained) {
        note("closed with %d memories\n", left);
        REQUIRE(broken || (!closed->streams && !closed->events && !closed->modules && !closed->graphs));
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
CUresult cuCtxSetCurrent(struct context* made) {
    REQUIRE(made && made->retained);
    current = made;
    return SUCCESS;
}

/* --- Copies ------------------------------------------------------------------- */

CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* all) {
    BEGIN(1) *all = setting("FAKE_BYTES", 256 << 20); *free_bytes = *all - current->used; END
}
CUresult cuMemAlloc_v2(u64* address, size_t bytes) {
    BEGIN(1)
    memory_calls++;
    require_no_capture();
    if (!bytes) result = INVALID_VALUE;
    else if (current->used + bytes > setting("FAKE_BYTES", 256 << 20)) result = OUT_OF_MEMORY;
    else { *address = (u64)allocate(bytes, 1); current->used += bytes; }
    END
}
CUresult cuMemFree_v2(u64 address) {
    /* A real driver may wait here; ours is to have waited before. */
    BEGIN(1) memory_calls++; require_no_capture(); REQUIRE(is_idle()); release(address, 1); END
}
CUresult cuMemHostAlloc(void** made, size_t bytes, unsigned flags) {
    /* Portable; perhaps for kernels to read; never write-combining, whose address is another. */
    BEGIN(1) memory_calls++; require_no_capture(); REQUIRE(bytes && (flags == 1 || flags == 3)); *made = allocate(bytes, 0); END
}
CUresult cuMemFreeHost(void* pointer) {
    pthread_mutex_lock(&lock);
    memory_calls++;
    require_no_capture();
    struct memory* m = memory_of((u64)pointer, 1, 0);
    REQUIRE(current && current->retained && m && m->begin == pointer);
    for (struct stream* s = streams; s; s = s->next)
        for (struct work* work = broken ? NULL : s->first; work; work = work->next) {
            REQUIRE((char*)work->to < m->begin || (char*)work->to >= m->begin + m->bytes);
            REQUIRE((char*)work->from < m->begin || (char*)work->from >= m->begin + m->bytes);
        }
    release((u64)pointer, 0);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
static void copy(u64 to, int to_gpu, u64 from, int from_gpu, size_t bytes, struct stream* on) {
    REQUIRE(bytes && memory_of(to, bytes, to_gpu) && memory_of(from, bytes, from_gpu));
    REQUIRE(to + bytes <= from || from + bytes <= to);
    enqueue(on, (struct work){.to = (void*)to, .from = (void*)from, .bytes = bytes});
}
CUresult cuMemcpyHtoDAsync_v2(u64 to, const void* from, size_t bytes, struct stream* on) {
    BEGIN(1) copy(to, 1, (u64)from, 0, bytes, on); END
}
CUresult cuMemcpyDtoHAsync_v2(void* to, u64 from, size_t bytes, struct stream* on) {
    BEGIN(1) copy((u64)to, 0, from, 1, bytes, on); END
}
/* By the addresses: of the GPU, or of pinned memory. */
CUresult cuMemcpyAsync(u64 to, u64 from, size_t bytes, struct stream* on) {
    BEGIN(1) copy(to, -1, from, -1, bytes, on); END
}

/* --- Streams and events --------------------------------------------------------- */

CUresult cuStreamCreate(struct stream** made, unsigned flags) {
    BEGIN(1)
    REQUIRE(flags == 1);
    struct stream* new = calloc(1, sizeof *new);
    *new = (struct stream){.context = current, .last = &new->first, .next = streams};
    streams = *made = new;
    current->streams++;
    END
}
CUresult cuStreamDestroy_v2(struct stream* gone) {
    BEGIN(1) LIVES(gone); REQUIRE(!gone->first && !gone->captured); gone->is_gone = 1; current->streams--; END
}
CUresult cuStreamSynchronize(struct stream* on) {
    BEGIN(1) LIVES(on); REQUIRE(!on->captured); require_no_capture(); run_all(on); END
}
CUresult cuStreamWaitEvent(struct stream* on, struct event* event, unsigned flags) {
    BEGIN(1)
    LIVES(event);
    REQUIRE(!flags);
    enqueue(on, (struct work){.awaited = event, .until = event->recorded});
    END
}
CUresult cuEventCreate(struct event** made, unsigned flags) {
    BEGIN(1)
    *made = calloc(1, sizeof **made);
    **made = (struct event){.timed = !(flags & 2), .context = current};
    current->events++;
    END
}
/* CUDA keeps what is under way of it. */
CUresult cuEventDestroy_v2(struct event* event) {
    BEGIN(1) LIVES(event); event->is_gone = 1; current->events--; END
}
CUresult cuEventRecord(struct event* event, struct stream* on) {
    BEGIN(1)
    LIVES(event);
    REQUIRE(event->past == event->recorded || event->on == on);
    event->on = on;
    event->recorded++;
    enqueue(on, (struct work){.event = event});
    END
}
CUresult cuEventSynchronize(struct event* event) {
    BEGIN(1) LIVES(event); while (event->past < event->recorded) run_first(event->on); END
}
/* Whoever asks again and again sees that it gets on. */
CUresult cuEventQuery(struct event* event) {
    BEGIN(1)
    LIVES(event);
    if (event->past < event->recorded) { run_first(event->on); result = NOT_READY; }
    END
}
CUresult cuEventElapsedTime_v2(float* milliseconds, struct event* start, struct event* end) {
    BEGIN(1)
    LIVES(start);
    LIVES(end);
    REQUIRE(start->timed && end->timed && start->recorded && end->recorded);
    REQUIRE(start->past == start->recorded && end->past == end->recorded);
    *milliseconds = 1.5f;
    END
}

/* --- Other GPUs ------------------------------------------------------------------- */

static int peer_access[DEVICES_MAX][DEVICES_MAX];
CUresult cuDeviceCanAccessPeer(int* can, int device, int peer) {
    REQUIRE(device != peer);
    *can = setting("FAKE_PEERS", 1);
    return SUCCESS;
}
CUresult cuCtxEnablePeerAccess(struct context* peer, unsigned flags) {
    BEGIN(1)
    REQUIRE(peer != current && peer->retained && !flags);
    if (peer_access[current - contexts][peer - contexts]++) result = 704;
    else note("peer access\n");
    END
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

static int parse(const char* line, struct function* f) {
#ifdef EMULATED
    if (sscanf(line, "\nkernel %63s", f->name) != 1) return 0;
    unsigned threads = 0;
    REQUIRE(emulator_find(f->name, &f->args_bytes, &threads));
    f->threads = threads;
    f->ptx = setting("FAKE_CAPABILITY", 90) >= 90 ? 90 : 80;
    return 1;
#else
    return sscanf(line, "\nkernel %63s %zu %d %d %d", f->name, &f->args_bytes, &f->shared, &f->ptx, &f->threads) == 5;
#endif
}
CUresult cuModuleLoadData(struct module** made, const char* image) {
    BEGIN(1)
    require_no_capture();
    REQUIRE((u64)image % 8 == 0);
    struct module* module = calloc(1, sizeof *module);
    *module = (struct module){.context = current, .functions = calloc(256, sizeof(struct function))};
    for (const char* line = strchr(image, '\n'); line; line = strchr(line + 1, '\n')) {
        struct function* f = &module->functions[module->count];
        if (!strncmp(line, "\nkernel ", 8) && parse(line, f)) {
            f->module = module;
            REQUIRE(++module->count < 256);
        }
    }
    if (!module->count) result = NO_BINARY;
    else { *made = module; current->modules++; }
    END
}
CUresult cuModuleUnload(struct module* module) {
    BEGIN(1) require_no_capture(); LIVES(module); REQUIRE(is_idle()); module->is_gone = 1; current->modules--; END
}
CUresult cuModuleGetFunctionCount(unsigned* count, struct module* module) { BEGIN(1) LIVES(module); *count = module->count; END }
CUresult cuModuleEnumerateFunctions(struct function** functions, unsigned count, struct module* module) {
    BEGIN(1) LIVES(module); for (unsigned i = 0; i < count; i++) functions[i] = &module->functions[i]; END
}
CUresult cuFuncGetName(const char** name, struct function* function) { BEGIN(1) LIVES(function->module); *name = function->name; END }
CUresult cuFuncLoad(struct function* function) { BEGIN(1) require_no_capture(); LIVES(function->module); function->loaded = 1; END }
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
    int most = 0;
    cuDeviceGetAttribute(&most, 97, current - contexts);
    REQUIRE(attribute == 8 || (attribute == 9 && value == 100));
    if (attribute == 9) result = SUCCESS;
    else if (function->shared + value > most) result = INVALID_VALUE;
    else function->dynamic = value;
    END
}

struct attribute { unsigned id, pad; union { char room[64]; int value; } value; };
struct config { unsigned grid[3], block[3], shared; struct stream* stream; struct attribute* attributes; unsigned count; };
CUresult cuLaunchKernelEx(const struct config* config, struct function* function, void** arguments, void** extra) {
    BEGIN(1)
    LIVES(function->module);
    /* One that is loaded at its first launch may wait for others, or be refused in a capture. */
    REQUIRE(!extra && function->loaded && function->args_bytes <= ARGS_MAX);
    REQUIRE(config->grid[0] && config->grid[1] && config->grid[2] && config->grid[1] < 65536 && config->grid[2] < 65536);
    REQUIRE(config->block[0] && config->block[0] <= (unsigned)function->threads && config->block[1] == 1 && config->block[2] == 1);
    REQUIRE(config->shared <= (unsigned)function->dynamic);
    REQUIRE(config->count == 0 || (config->count == 1 && config->attributes->id == 6 && config->attributes->value.value == 1));
    REQUIRE(config->count == (function->ptx >= 90));
    struct work work = {.launched = function, .threads = config->block[0], .shared = config->shared};
    memcpy(work.grid, config->grid, sizeof work.grid);
    /* Kept for good: graphs launch it again. */
    work.args = aligned_alloc(64, (function->args_bytes + 63) / 64 * 64);
    memcpy(work.args, arguments[0], function->args_bytes);
    enqueue(config->stream, work);
    note("%s %s %u,%u,%u x %u shared %u%s\n", config->stream->captured ? "capture" : "launch", function->name,
         config->grid[0], config->grid[1], config->grid[2], config->block[0], config->shared,
         config->count ? " dependent" : "");
    END
}
CUresult cuTensorMapEncodeTiled(u64* map, unsigned kind, unsigned rank, void* address, const u64* extents,
                                const u64* strides, const unsigned* boxes, const unsigned* steps, unsigned interleave,
                                unsigned swizzle, unsigned promotion, unsigned fill) {
    BEGIN(1)
    REQUIRE(kind == 9 && rank == 2 && steps[0] == 1 && steps[1] == 1 && !interleave && swizzle == 3 && !fill);
    REQUIRE((u64)map % 64 == 0 && (u64)address % 16 == 0 && strides[0] % 16 == 0 && strides[0] < 1ull << 40);
    REQUIRE(extents[0] && extents[1] && extents[0] <= 1ull << 32 && extents[1] <= 1ull << 32 && promotion <= 3);
    REQUIRE(boxes[0] && boxes[0] * 2 <= 128 && boxes[0] * 2 % 16 == 0 && boxes[1] && boxes[1] <= 256);
#ifdef EMULATED
    u64 seen[] = {0x50414D524F534E54ull, (u64)address, extents[1], extents[0], strides[0], boxes[1], boxes[0]};
#else
    u64 seen[] = {(u64)address, extents[0], extents[1], strides[0], boxes[0], boxes[1], promotion};
#endif
    memset(map, 0, 128);
    memcpy(map, seen, sizeof seen);
    END
}

/* --- Graphs ---------------------------------------------------------------------- */

CUresult cuStreamBeginCapture_v2(struct stream* on, unsigned mode) {
    BEGIN(1)
    LIVES(on);
    REQUIRE(mode == CAPTURE_THREAD_LOCAL && !on->captured);
    on->captured = calloc(1, sizeof *on->captured);
    on->captured->context = current;
    on->capturer = pthread_self();
    END
}
CUresult cuStreamEndCapture(struct stream* on, struct graph** graph) {
    /* Whatever comes of it, this is the end of the capture. */
    REQUIRE(on->captured && pthread_equal(on->capturer, pthread_self()));
    struct graph* captured = on->captured;
    on->captured = NULL;
    BEGIN(1) *graph = captured; END
}
CUresult cuGraphInstantiateWithFlags(struct graph** made, struct graph* graph, u64 flags) {
    BEGIN(1)
    LIVES(graph);
    REQUIRE(!flags && graph->count);
    *made = malloc(sizeof **made);
    **made = *graph;
    current->graphs++;
    note("graph of %zu\n", graph->count);
    END
}
CUresult cuGraphDestroy(struct graph* graph) { BEGIN(1) LIVES(graph); graph->is_gone = 1; END }
CUresult cuGraphUpload(struct graph* graph, struct stream* on) { BEGIN(1) LIVES(graph); LIVES(on); REQUIRE(!on->captured); END }
CUresult cuGraphLaunch(struct graph* graph, struct stream* on) {
    BEGIN(1)
    LIVES(graph);
    REQUIRE(!on->captured);
    for (size_t i = 0; i < graph->count; i++) enqueue(on, graph->work[i]);
    note("replay %zu\n", graph->count);
    END
}
/* One that runs is freed when it is done. */
CUresult cuGraphExecDestroy(struct graph* graph) {
    BEGIN(1) LIVES(graph); graph->is_gone = 1; current->graphs--; note("graph gone\n"); END
}
#endif
