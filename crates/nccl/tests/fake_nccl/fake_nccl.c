// What NCCL's interface promises, among threads and processes of one machine,
// over memory that they share: a stand-in for tests where there is no GPU.
// Addresses are the host's, and streams are ignored: what was enqueued is done
// once ncclCommGetAsyncError says so, which is also what drives it.
//
// Stricter than NCCL: it refuses a call before the one before has settled, and
// ranks whose exchanges do not match. -DVERSION=, -DLACKING, -DREFUSING and
// -DSTICKING make libraries that are too old, lack a function, refuse to begin,
// or do not return from a call. With -DENTANGLED an abort waits for what else the
// rank has enqueued, as on a GPU's one stream: for the aborts of all it has.
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 22809
#endif

enum { SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum { BYTES = 1, FULL = 7, HALF = 9 };
enum { ALL_GATHER = 1, ALL_REDUCE, REDUCE_SCATTER, REDUCE, BROADCAST, SEND, RECEIVE };
enum { MAX_RANKS = 16, MAX_OPERATIONS = 64, SLOT_BYTES = 1 << 16, LANE_BYTES = 1 << 14 };

typedef struct {
    char path[128];
} Id;

typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking;
} Config;

typedef struct {
    atomic_ulong wrote, read;
    unsigned char bytes[LANE_BYTES];
} Lane;

typedef struct {
    atomic_int joined;
    atomic_ulong wrote[MAX_RANKS], read[MAX_RANKS];
    size_t signature[MAX_RANKS];
    unsigned char slots[MAX_RANKS][SLOT_BYTES];
    Lane lanes[MAX_RANKS][MAX_RANKS];
} Shared;

typedef struct {
    int what, kind, peer, is_written;
    const unsigned char* from;
    unsigned char* to;
    size_t count, done;
} Operation;

typedef struct {
    int rank, num_ranks, num_operations, result;
    size_t round;
    Shared* shared;
    Operation operations[MAX_OPERATIONS];
} Comm;

static _Thread_local int group_depth;
static _Thread_local char message[256];
static atomic_int failures[MAX_RANKS];
#ifdef STICKING
static atomic_int was_aborted;
#endif
#ifdef ENTANGLED
static atomic_int num_whole[MAX_RANKS];
#endif

// For tests: what happened to the network of a rank of this process.
void fakeNcclFail(int rank, int result) { atomic_store(&failures[rank], result); }

int ncclGetVersion(int* version) {
    *version = VERSION;
    return SUCCESS;
}

const char* ncclGetErrorString(int result) {
    return result == SUCCESS ? "no error" : result == SYSTEM_ERROR ? "unhandled system error" : "a made-up error";
}

const char* ncclGetLastError(Comm* comm) {
    (void)comm;
    return message;
}

static int refuse(int result, const char* reason) {
    snprintf(message, sizeof message, "%s", reason);
    return result;
}

int ncclGetUniqueId(Id* id) {
    memset(id, 0, sizeof *id);
    strcpy(id->path, "/dev/shm/chorale-fake-nccl-XXXXXX");
    int file = mkstemp(id->path);
    if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return refuse(SYSTEM_ERROR, "no shared memory");
    close(file);
    return SUCCESS;
}

int ncclCommInitRankConfig(Comm** out, int num_ranks, Id id, int rank, Config* config) {
    *out = NULL;
#ifdef REFUSING
    unlink(id.path);
    return refuse(UNHANDLED_CUDA_ERROR, "there is no GPU");
#endif
    if (config->magic != 0xcafebeef || config->blocking != 0 || config->size < sizeof(Config)) {
        return refuse(INVALID_ARGUMENT, "the configuration");
    }
    if (num_ranks > MAX_RANKS || rank < 0 || rank >= num_ranks) return refuse(INVALID_ARGUMENT, "the ranks");
    int file = open(id.path, O_RDWR);
    if (file < 0) return refuse(SYSTEM_ERROR, "the id is nobody's");
    void* memory = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return refuse(SYSTEM_ERROR, "no shared memory");
    Comm* comm = calloc(1, sizeof *comm);
    comm->rank = rank;
    comm->num_ranks = num_ranks;
    comm->shared = memory;
#ifdef ENTANGLED
    atomic_fetch_add(&num_whole[rank], 1);
#endif
    // The last to come leaves no name behind.
    if (atomic_fetch_add(&comm->shared->joined, 1) + 1 == num_ranks) unlink(id.path);
    *out = comm;
    return IN_PROGRESS;
}

static size_t size_of(int kind) { return kind == BYTES ? 1 : kind == HALF ? 2 : 4; }

static float widen(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

static uint16_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// Adds what another rank has, rounded at each rank as a ring does.
static void add(unsigned char* sum, const unsigned char* values, size_t count, int kind) {
    for (size_t i = 0; i < count; i++) {
        if (kind == HALF) {
            uint16_t one, other;
            memcpy(&one, sum + 2 * i, 2);
            memcpy(&other, values + 2 * i, 2);
            one = narrow(widen(one) + widen(other));
            memcpy(sum + 2 * i, &one, 2);
        } else {
            float one, other;
            memcpy(&one, sum + 4 * i, 4);
            memcpy(&other, values + 4 * i, 4);
            one += other;
            memcpy(sum + 4 * i, &one, 4);
        }
    }
}

static void put(Comm* comm, Operation* op, size_t take) {
    size_t size = size_of(op->kind);
    unsigned char* slot = comm->shared->slots[comm->rank];
    if (op->what == REDUCE_SCATTER) {
        for (int to = 0; to < comm->num_ranks; to++) {
            memcpy(slot + to * take * size, op->from + (to * op->count + op->done) * size, take * size);
        }
    } else if (op->what != BROADCAST || op->peer == comm->rank) {
        memcpy(slot, op->from + op->done * size, take * size);
    }
}

static void get(Comm* comm, Operation* op, size_t take) {
    size_t size = size_of(op->kind), at = op->done * size;
    if (op->what == BROADCAST) {
        memmove(op->to + at, comm->shared->slots[op->peer], take * size);
        return;
    }
    if (op->what == REDUCE && op->peer != comm->rank) return;
    for (int from = 0; from < comm->num_ranks; from++) {
        const unsigned char* slot = comm->shared->slots[from];
        if (op->what == ALL_GATHER) {
            memcpy(op->to + from * op->count * size + at, slot, take * size);
            continue;
        }
        if (op->what == REDUCE_SCATTER) slot += comm->rank * take * size;
        if (from == 0) memcpy(op->to + at, slot, take * size);
        else add(op->to + at, slot, take, op->kind);
    }
}

static int all_at(Comm* comm, atomic_ulong* counts, size_t round) {
    for (int rank = 0; rank < comm->num_ranks; rank++) {
        if (atomic_load(&counts[rank]) < round) return 0;
    }
    return 1;
}

// Goes on with an operation of all ranks; true when it is done.
static int collective(Comm* comm, Operation* op) {
    Shared* shared = comm->shared;
    size_t room = SLOT_BYTES / size_of(op->kind) / (op->what == REDUCE_SCATTER ? comm->num_ranks : 1);
    size_t signature = op->count * 1000 + op->what * 100 + op->kind * 10 + op->peer;
    while (op->done < op->count) {
        size_t take = op->count - op->done < room ? op->count - op->done : room;
        size_t round = comm->round + 1;
        if (!op->is_written) {
            if (!all_at(comm, shared->read, round - 1)) return 0;
            put(comm, op, take);
            shared->signature[comm->rank] = signature;
            atomic_store(&shared->wrote[comm->rank], round);
            op->is_written = 1;
        }
        if (!all_at(comm, shared->wrote, round)) return 0;
        for (int rank = 0; rank < comm->num_ranks; rank++) {
            if (shared->signature[rank] != signature) {
                comm->result = refuse(INVALID_USAGE, "the ranks exchange different things");
            }
        }
        get(comm, op, take);
        atomic_store(&shared->read[comm->rank], round);
        comm->round = round;
        op->is_written = 0;
        op->done += take;
    }
    return 1;
}

// Goes on with a send or a receive; true when it is done.
static int passage(Comm* comm, Operation* op) {
    size_t size = size_of(op->kind), len = op->count * size;
    int is_send = op->what == SEND;
    Lane* lane = is_send ? &comm->shared->lanes[comm->rank][op->peer] : &comm->shared->lanes[op->peer][comm->rank];
    while (op->done < len) {
        size_t take = len - op->done < LANE_BYTES ? len - op->done : LANE_BYTES;
        size_t wrote = atomic_load(&lane->wrote), read = atomic_load(&lane->read);
        if (is_send ? wrote != read : wrote == read) return 0;
        if (is_send) memcpy(lane->bytes, op->from + op->done, take);
        else memcpy(op->to + op->done, lane->bytes, take);
        atomic_fetch_add(is_send ? &lane->wrote : &lane->read, 1);
        op->done += take;
    }
    return 1;
}

static void go_on(Comm* comm) {
    int is_blocked = 0, num_left = 0;
    unsigned blocked_lanes[2] = {0, 0};
    for (int i = 0; i < comm->num_operations; i++) {
        Operation op = comm->operations[i];
        int is_done;
        if (op.what == SEND || op.what == RECEIVE) {
            unsigned* lanes = &blocked_lanes[op.what == SEND];
            is_done = !(*lanes >> op.peer & 1) && passage(comm, &op);
            if (!is_done) *lanes |= 1u << op.peer;
        } else {
            is_done = !is_blocked && collective(comm, &op);
            is_blocked |= !is_done;
        }
        if (!is_done) comm->operations[num_left++] = op;
    }
    comm->num_operations = num_left;
}

int ncclCommGetAsyncError(Comm* comm, int* state) {
    int failure = atomic_load(&failures[comm->rank]);
    if (failure != SUCCESS) comm->result = refuse(failure, "the network of this rank failed");
    *state = comm->result;
    if (comm->result != SUCCESS) return SUCCESS;
    if (atomic_load(&comm->shared->joined) < comm->num_ranks) {
        *state = IN_PROGRESS;
        return SUCCESS;
    }
    go_on(comm);
    *state = comm->result != SUCCESS ? comm->result : comm->num_operations > 0 ? IN_PROGRESS : SUCCESS;
    return SUCCESS;
}

int ncclCommAbort(Comm* comm) {
#ifdef STICKING
    atomic_store(&was_aborted, 1);
    return SUCCESS;
#endif
#ifdef ENTANGLED
    atomic_fetch_sub(&num_whole[comm->rank], 1);
    while (atomic_load(&num_whole[comm->rank]) > 0) usleep(1000);
#endif
    munmap(comm->shared, sizeof(Shared));
    free(comm);
    return SUCCESS;
}

int ncclGroupStart(void) {
    group_depth++;
    return SUCCESS;
}

int ncclGroupEnd(void) {
    group_depth--;
    return IN_PROGRESS;
}

static int enqueue(Comm* comm, Operation op) {
    if (comm->num_operations == MAX_OPERATIONS) return refuse(INVALID_USAGE, "too many exchanges at a time");
    if (group_depth == 0 && comm->num_operations > 0) return refuse(INVALID_USAGE, "the call before is not done");
    if (op.peer < 0 || op.peer >= comm->num_ranks) return refuse(INVALID_ARGUMENT, "there is no such rank");
    comm->operations[comm->num_operations++] = op;
    return group_depth > 0 ? SUCCESS : IN_PROGRESS;
}

int ncclAllGather(const void* from, void* to, size_t count, int kind, Comm* comm, void* stream) {
    (void)stream;
#ifdef STICKING
    while (!atomic_load(&was_aborted)) usleep(1000);
    return UNHANDLED_CUDA_ERROR;
#endif
    return enqueue(comm, (Operation){.what = ALL_GATHER, .kind = kind, .from = from, .to = to, .count = count});
}

int ncclAllReduce(const void* from, void* to, size_t count, int kind, int how, Comm* comm, void* stream) {
    (void)stream, (void)how;
    return enqueue(comm, (Operation){.what = ALL_REDUCE, .kind = kind, .from = from, .to = to, .count = count});
}

int ncclReduceScatter(const void* from, void* to, size_t count, int kind, int how, Comm* comm, void* stream) {
    (void)stream, (void)how;
    return enqueue(comm, (Operation){.what = REDUCE_SCATTER, .kind = kind, .from = from, .to = to, .count = count});
}

int ncclReduce(const void* from, void* to, size_t count, int kind, int how, int root, Comm* comm, void* stream) {
    (void)stream, (void)how;
    return enqueue(comm, (Operation){REDUCE, kind, root, 0, from, to, count, 0});
}

int ncclBroadcast(const void* from, void* to, size_t count, int kind, int root, Comm* comm, void* stream) {
    (void)stream;
    return enqueue(comm, (Operation){BROADCAST, kind, root, 0, from, to, count, 0});
}

#ifndef LACKING
int ncclSend(const void* from, size_t count, int kind, int rank, Comm* comm, void* stream) {
    (void)stream;
    return enqueue(comm, (Operation){SEND, kind, rank, 0, from, NULL, count, 0});
}
#endif

int ncclRecv(void* to, size_t count, int kind, int rank, Comm* comm, void* stream) {
    (void)stream;
    return enqueue(comm, (Operation){RECEIVE, kind, rank, 0, NULL, to, count, 0});
}
