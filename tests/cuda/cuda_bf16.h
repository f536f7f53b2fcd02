// bfloat16: the upper half of an f32, rounded to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {
        uint32_t word;
        memcpy(&word, &x, 4);
        bits = std::isnan(x) ? 0x7fff : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
    }
    explicit __nv_bfloat16(double x) : __nv_bfloat16(float(x)) {}
    explicit __nv_bfloat16(int x) : __nv_bfloat16(float(x)) {}
    explicit __nv_bfloat16(unsigned x) : __nv_bfloat16(float(x)) {}
    operator float() const {
        uint32_t word = uint32_t(bits) << 16;
        float x;
        memcpy(&x, &word, 4);
        return x;
    }
};

struct __nv_bfloat162 { __nv_bfloat16 x, y; };
