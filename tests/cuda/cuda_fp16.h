// IEEE half precision, rounded to nearest, ties to even.
#pragma once

struct __half {
    _Float16 value;
    __half() = default;
    explicit __half(float x) : value(_Float16(x)) {}
    explicit __half(double x) : value(_Float16(x)) {}
    explicit __half(int x) : value(_Float16(float(x))) {}
    explicit __half(unsigned x) : value(_Float16(float(x))) {}
    operator float() const { return float(value); }
};

struct __half2 { __half x, y; };
