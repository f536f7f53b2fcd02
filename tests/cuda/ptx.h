// PTX that CubeCL's code has inline, with the layouts of the PTX ISA ("Matrix fragments for mma.m16n8k16 with floating point type", "Warp-level
// matrix load instruction: ldmatrix"). `asm volatile("..." : "=r"(a) : "r"(b));` becomes `ptx("...", std::tie(a), std::make_tuple(b));`.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulation {

inline float half_bits(uint16_t x) { __half h; memcpy(&h, &x, 2); return float(h); }
inline float bfloat_bits(uint16_t x) { __nv_bfloat16 h; memcpy(&h, &x, 2); return float(h); }

// Element `i` (0 or 1) of a register of two.
inline uint16_t part(uint32_t reg, unsigned i) { return uint16_t(reg >> (16 * i)); }

template <unsigned N> struct Matrices { uint32_t address; uint32_t reg[N]; };

// Each matrix is 8 × 8: its row r begins at the address that lane 8·matrix + r brings. Lane l gets elements 2·(l % 4) and the next of row l / 4,
// or of column l / 4 if it is transposed.
template <unsigned N> void ldmatrix(const char *name, bool transposed, Matrices<N> &mine) {
    with_plane(name, mine, [transposed](Matrices<N> **lanes) {
        for (unsigned m = 0; m < N; ++m) {
            uint16_t matrix[8][8];
            for (unsigned r = 0; r < 8; ++r) {
                uint32_t address = lanes[8 * m + r]->address;
                if (address % 16 != 0 || address + 16 > SHARED) fail("ldmatrix at address " + std::to_string(address));
                memcpy(matrix[r], dynamic_shared_mem + address, 16);
            }
            for (unsigned l = 0; l < LANES; ++l) {
                unsigned g = l / 4, c = 2 * (l % 4);
                uint16_t low = transposed ? matrix[c][g] : matrix[g][c];
                uint16_t high = transposed ? matrix[c + 1][g] : matrix[g][c + 1];
                lanes[l]->reg[m] = uint32_t(low) | uint32_t(high) << 16;
            }
        }
    });
}

struct Product { uint32_t a[4], b[2]; float c[4]; };

// d = a·b + c with f32 sums: products are exact, each sum of 16 is rounded once.
inline void mma_m16n8k16(const char *name, float (*value)(uint16_t), Product &mine) {
    with_plane(name, mine, [value](Product **lanes) {
        float a[16][16], b[16][8];
        for (unsigned l = 0; l < LANES; ++l) {
            unsigned g = l / 4, t = 2 * (l % 4);
            for (unsigned i = 0; i < 8; ++i) {
                unsigned row = g + (i / 2 % 2) * 8, column = t + i % 2 + (i / 4) * 8;
                a[row][column] = value(part(lanes[l]->a[i / 2], i % 2));
            }
            for (unsigned i = 0; i < 4; ++i) b[t + i % 2 + (i / 2) * 8][g] = value(part(lanes[l]->b[i / 2], i % 2));
        }
        for (unsigned l = 0; l < LANES; ++l) {
            for (unsigned i = 0; i < 4; ++i) {
                unsigned row = l / 4 + (i / 2) * 8, column = 2 * (l % 4) + i % 2;
                double sum = lanes[l]->c[i];
                for (unsigned k = 0; k < 16; ++k) sum += double(a[row][k]) * double(b[k][column]);
                lanes[l]->c[i] = float(sum);
            }
        }
    });
}

inline bool begins(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

} // namespace emulation

template <class... Out> void ptx(const char *code, std::tuple<Out &...> out, std::tuple<uint32_t> in) {
    using namespace emulation;
    constexpr unsigned N = sizeof...(Out);
    Matrices<N> mine{std::get<0>(in), {}};
    std::string expected = "ldmatrix.sync.aligned.m8n8.x" + std::to_string(N);
    if (!begins(code, expected.c_str())) fail(std::string("unknown: ") + code);
    ldmatrix<N>(code, strstr(code, ".trans") != nullptr, mine);
    unsigned i = 0;
    std::apply([&](auto &...reg) { ((reg = mine.reg[i++]), ...); }, out);
}

using Registers = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, float, float, float, float>;

inline void ptx(const char *code, std::tuple<float &, float &, float &, float &> out, Registers in) {
    using namespace emulation;
    Product mine;
    std::apply(
        [&](auto a0, auto a1, auto a2, auto a3, auto b0, auto b1, auto... c) {
            mine = {{a0, a1, a2, a3}, {b0, b1}, {c...}};
        },
        in);
    if (begins(code, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")) mma_m16n8k16(code, bfloat_bits, mine);
    else if (begins(code, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")) mma_m16n8k16(code, half_bits, mine);
    else fail(std::string("unknown: ") + code);
    out = std::tie(mine.c[0], mine.c[1], mine.c[2], mine.c[3]);
}
