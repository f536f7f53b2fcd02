// One cube of CUDA at a time on the CPU: what CubeCL's generated code includes and calls, for g++.
//
// Each unit is a fiber. A fiber runs until it must wait for others: at a barrier of the cube, or at an operation of its plane (shuffles, votes,
// ldmatrix, mma), which the last of the plane's lanes to arrive does for all of them. Lanes that meet at different operations, and barriers
// that not all units reach, end the launch with a message. `seed` changes the order in which fibers run: a missing barrier changes the result.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#pragma GCC push_options
#pragma GCC optimize("O2", "no-strict-aliasing")

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::abs; using std::exp; using std::log; using std::sqrt; using std::pow; using std::tanh; using std::floor; using std::ceil;
using std::sin; using std::cos; using std::isnan; using std::isinf; using std::fma; using std::trunc; using std::rint;

// Shared memory of the cube that runs; what lies behind what the launch asked for must stay as it is.
constexpr size_t SHARED = 232448;
alignas(1024) unsigned char dynamic_shared_mem[SHARED + 1024];

struct uint3 { unsigned x, y, z; };
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

namespace emulation {

constexpr unsigned LANES = 32;
constexpr size_t STACK = 256 << 10;

// What a lane brings to an operation of its plane.
struct Arrival { const char *operation; void *data; };

struct Plane {
    unsigned arrived = 0, generation = 0;
    Arrival lanes[LANES];
};

struct Fiber {
    ucontext_t start;
    jmp_buf here;
    std::unique_ptr<char[]> stack;
    bool is_started = false, is_done = false;
    uint3 thread;
    unsigned number;
};

inline uint3 block_idx, block_dim, grid_dim;
inline std::vector<Fiber> fibers;
inline std::vector<Plane> planes;
inline Fiber *current = nullptr;
inline jmp_buf scheduler;
inline unsigned waiting = 0, barrier = 0, alive = 0;
inline unsigned long progress = 0;
inline std::string failure;
inline void (*body)(void *) = nullptr;
inline void *body_data = nullptr;

// Lets others run.
inline void yield() {
    if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
}

// Ends the launch.
[[noreturn]] inline void fail(const std::string &why) {
    if (failure.empty()) failure = why;
    for (;;) yield();
}

inline void sync_cube() {
    unsigned now = barrier;
    ++progress;
    if (++waiting == alive) { waiting = 0; ++barrier; return; }
    while (barrier == now) yield();
}

// Does `all` for the whole plane when its last lane has come; `data` is what this lane brings and takes.
template <class T, class All> void with_plane(const char *operation, T &data, All all) {
    Plane &plane = planes[current->number / LANES];
    plane.lanes[current->number % LANES] = {operation, &data};
    unsigned now = plane.generation;
    ++progress;
    if (++plane.arrived < LANES) {
        while (plane.generation == now) yield();
        return;
    }
    T *lanes[LANES];
    for (unsigned i = 0; i < LANES; ++i) {
        if (strcmp(plane.lanes[i].operation, operation) != 0)
            fail(std::string("lanes of a plane are at ") + operation + " and at " + plane.lanes[i].operation);
        lanes[i] = static_cast<T *>(plane.lanes[i].data);
    }
    plane.arrived = 0;
    ++plane.generation;
    all(lanes);
}

inline void enter() {
    body(body_data);
    current->is_done = true;
    --alive;
    ++progress;
    for (;;) yield();
}

// Runs one cube; `seed` orders its fibers.
inline void run_cube(unsigned units, unsigned seed) {
    planes.assign((units + LANES - 1) / LANES, Plane());
    waiting = barrier = 0;
    alive = units;
    for (unsigned i = 0; i < units; ++i) {
        Fiber &f = fibers[i];
        f.is_started = f.is_done = false;
        f.number = i;
        f.thread = {i, 0, 0};
        if (f.stack == nullptr) f.stack.reset(new char[STACK]);
    }
    unsigned first = 0;
    while (alive > 0 && failure.empty()) {
        unsigned long before = progress;
        for (unsigned turn = 0; turn < units && failure.empty(); ++turn) {
            unsigned step = seed % 2 == 0 ? turn : units - 1 - turn;
            Fiber &f = fibers[(step + first) % units];
            if (f.is_done) continue;
            current = &f;
            if (_setjmp(scheduler) != 0) continue;
            if (f.is_started) _longjmp(f.here, 1);
            f.is_started = true;
            getcontext(&f.start);
            f.start.uc_stack.ss_sp = f.stack.get();
            f.start.uc_stack.ss_size = STACK;
            f.start.uc_link = nullptr;
            makecontext(&f.start, enter, 0);
            setcontext(&f.start);
        }
        if (before == progress && failure.empty()) failure = "units wait for each other forever";
        first += seed / 2;
    }
}

// A copy of a buffer that ends where memory does, shared with the process that runs a launch: an access behind it ends that process.
struct Guarded {
    char *pages;
    size_t size, bytes;
    explicit Guarded(const void *from, size_t n) : bytes(n) {
        size_t page = size_t(sysconf(_SC_PAGESIZE));
        size = (n + page - 1) / page * page;
        pages = static_cast<char *>(mmap(nullptr, size + page, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        if (size > 0) mprotect(pages, size, PROT_READ | PROT_WRITE);
        memcpy(data(), from, n);
    }
    Guarded(const Guarded &) = delete;
    ~Guarded() { munmap(pages, size + size_t(sysconf(_SC_PAGESIZE))); }
    char *data() { return pages + size - bytes; }
};

// What CubeCL passes to a kernel.
struct Arguments {
    void **buffers;
    const size_t *bytes;
    size_t n_buffers;
    const float *numbers;
    size_t n_numbers;
    const uint32_t *positions;
    size_t n_positions;
};

// A buffer as it is, or what is passed by value.
template <class A> A argument(void *from) {
    if constexpr (std::is_pointer_v<A>) return static_cast<A>(from);
    else return *static_cast<std::remove_cv_t<A> *>(from);
}

template <class A> uint32_t length(size_t bytes) {
    if constexpr (std::is_pointer_v<A>) return uint32_t(bytes / sizeof(std::remove_pointer_t<A>));
    else return 0;
}

// What stands beside the buffers, as far as the kernel has it: numbers, positions, and twice the lengths of buffers in vectors, since CubeCL
// tells what is allocated from what is bound.
template <class Info> void fill(Info &info, const Arguments &from, const uint32_t *lengths) {
    memset(&info, 0, sizeof info);
    if constexpr (requires { info.scalars_float; }) memcpy(info.scalars_float, from.numbers, from.n_numbers * sizeof(float));
    if constexpr (requires { info.scalars_uint32; }) memcpy(info.scalars_uint32, from.positions, from.n_positions * sizeof(uint32_t));
    if constexpr (requires { info.static_meta; }) {
        memcpy(info.static_meta, lengths, from.n_buffers * sizeof(uint32_t));
        memcpy(info.static_meta + from.n_buffers, lengths, from.n_buffers * sizeof(uint32_t));
    }
}

// Runs all cubes one after the other; what is said instead of nothing is why it failed.
inline const char *run_grid(void (*of_unit)(void *), void *data, uint3 grid, unsigned units, size_t shared_bytes, unsigned seed) {
    failure.clear();
    body = of_unit;
    body_data = data;
    grid_dim = grid;
    block_dim = {units, 1, 1};
    fibers.resize(units);
    if (units % LANES != 0 || shared_bytes > SHARED) return "no such cube";
    for (unsigned y = 0; y < grid.y && failure.empty(); ++y) {
        for (unsigned x = 0; x < grid.x && failure.empty(); ++x) {
            block_idx = {x, y, 0};
            memset(dynamic_shared_mem, 0xff, sizeof dynamic_shared_mem);
            run_cube(units, seed);
            for (size_t i = shared_bytes; i < sizeof dynamic_shared_mem; ++i)
                if (dynamic_shared_mem[i] != 0xff) failure = "a unit wrote behind the shared memory";
        }
    }
    return failure.c_str();
}

template <class Info, class... A, size_t... I>
const char *launch(void (*kernel)(A...), const Arguments &from, uint3 grid, unsigned units, size_t shared_bytes, unsigned seed,
                   std::index_sequence<I...>) {
    if (sizeof...(A) != from.n_buffers + 1) return "another number of buffers";
    std::vector<std::unique_ptr<Guarded>> guarded;
    for (size_t i = 0; i < from.n_buffers; ++i) guarded.push_back(std::make_unique<Guarded>(from.buffers[i], from.bytes[i]));
    uint32_t lengths[] = {length<A>(I < from.n_buffers ? from.bytes[I] : 0)...};
    Info info;
    fill(info, from, lengths);
    struct Call { void (*kernel)(A...); void *of[sizeof...(A)]; } call{kernel, {(I < from.n_buffers ? guarded[I]->data() : (char *)&info)...}};
    auto unit = [](void *data) {
        Call &call = *static_cast<Call *>(data);
        call.kernel(argument<A>(call.of[I])...);
    };
    // In a process of its own, which may end in the middle.
    Guarded said(std::string(1024, '\0').data(), 1024);
    pid_t process = fork();
    if (process == 0) {
        strncpy(said.data(), run_grid(unit, &call, grid, units, shared_bytes, seed), 1023);
        _exit(0);
    }
    int status = 0;
    if (process < 0 || waitpid(process, &status, 0) != process) return "no process for the launch";
    failure = said.data();
    if (!WIFEXITED(status)) failure = "a unit read or wrote outside of its buffers";
    for (size_t i = 0; i < from.n_buffers; ++i) memcpy(from.buffers[i], guarded[i]->data(), from.bytes[i]);
    return failure.c_str();
}

// Runs a kernel on copies of the buffers, and copies them back.
template <class Info, class... A>
const char *launch(void (*kernel)(A...), const Arguments &from, uint3 grid, unsigned units, size_t shared_bytes, unsigned seed) {
    return launch<Info>(kernel, from, grid, units, shared_bytes, seed, std::index_sequence_for<A...>());
}

} // namespace emulation

#define threadIdx emulation::thread_idx()
#define blockIdx emulation::block_idx
#define blockDim emulation::block_dim
#define gridDim emulation::grid_dim
constexpr int warpSize = 32;

namespace emulation {
inline uint3 thread_idx() { return current->thread; }
}

inline void __syncthreads() { emulation::sync_cube(); }
inline void __syncwarp(unsigned = -1) {
    int nothing = 0;
    emulation::with_plane("__syncwarp", nothing, [](int **) {});
}

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline float min(float a, float b) { return fminf(a, b); }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(unsigned x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }

namespace emulation {

template <class T> struct Shuffled { T value; unsigned from; };

template <class T> T shuffle(const char *operation, T value, unsigned from) {
    Shuffled<T> mine{value, from};
    with_plane(operation, mine, [](Shuffled<T> **lanes) {
        T values[LANES];
        for (unsigned i = 0; i < LANES; ++i) values[i] = lanes[i]->value;
        for (unsigned i = 0; i < LANES; ++i) lanes[i]->value = lanes[i]->from < LANES ? values[lanes[i]->from] : values[i];
    });
    return mine.value;
}

inline unsigned vote(bool x) {
    unsigned mine = x;
    with_plane("vote", mine, [](unsigned **lanes) {
        unsigned all = 0;
        for (unsigned i = 0; i < LANES; ++i) all |= unsigned(*lanes[i] != 0) << i;
        for (unsigned i = 0; i < LANES; ++i) *lanes[i] = all;
    });
    return mine;
}

inline unsigned lane() { return current->number % LANES; }

} // namespace emulation

template <class T> T __shfl_sync(unsigned, T x, int from) { return emulation::shuffle("shfl.idx", x, unsigned(from) % 32); }
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) { return emulation::shuffle("shfl.bfly", x, emulation::lane() ^ unsigned(mask)); }
template <class T> T __shfl_up_sync(unsigned, T x, unsigned by) { return emulation::shuffle("shfl.up", x, emulation::lane() - by); }
template <class T> T __shfl_down_sync(unsigned, T x, unsigned by) { return emulation::shuffle("shfl.down", x, emulation::lane() + by); }
inline unsigned __ballot_sync(unsigned, bool x) { return emulation::vote(x); }
inline bool __any_sync(unsigned, bool x) { return emulation::vote(x) != 0; }
inline bool __all_sync(unsigned, bool x) { return emulation::vote(x) == 0xffffffffu; }

// Addresses of shared memory count from its beginning.
inline size_t __cvta_generic_to_shared(const void *p) { return size_t(static_cast<const unsigned char *>(p) - dynamic_shared_mem); }

#include "ptx.h"

#pragma GCC pop_options
