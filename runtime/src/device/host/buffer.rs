//! Typed views of arena bytes: loads widen to f32, stores round to the element type, ties to even.
#![allow(unsafe_code)]

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kiln_compiler::ir::DType;

/// A view of `len` elements of one type. Copies of it name the same memory.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    ptr: *mut u8,
    len: usize,
    dtype: DType,
}

// SAFETY: a `Buf` is a promise made in `Buf::new`: kernels write disjoint elements from their threads.
unsafe impl Send for Buf {}
// SAFETY: as above.
unsafe impl Sync for Buf {}

impl Buf {
    /// The elements in `bytes` bytes from `ptr`.
    ///
    /// # Safety
    /// The bytes are valid for reads and writes as long as the view or a copy of it is used, and a kernel that gets the view as an
    /// output is the only user of those bytes while it runs, except where the kernel's documentation allows an operand to alias.
    ///
    /// # Panics
    /// If `ptr` is not aligned for `dtype`.
    pub unsafe fn new(ptr: *mut u8, bytes: usize, dtype: DType) -> Buf {
        let size = dtype.bytes();
        assert!((ptr as usize).is_multiple_of(size), "a buffer of {dtype} starts at a multiple of {size}");
        Buf { ptr, len: bytes / size, dtype }
    }

    /// Where its elements start.
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.bytes()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline(always)]
    fn check(&self, at: usize, n: usize) {
        assert!(at + n <= self.len, "a buffer of {} elements has no range {at}..{}", self.len, at + n);
    }

    /// Elements `at..at + n`, whose type has the size of `T`.
    #[inline(always)]
    fn slice<T>(&self, at: usize, n: usize) -> &[T] {
        debug_assert_eq!(size_of::<T>(), self.dtype.bytes());
        self.check(at, n);
        // SAFETY: in range, aligned (checked by `new`), and valid by the promise made to `new`.
        unsafe { std::slice::from_raw_parts(self.ptr.cast::<T>().add(at), n) }
    }

    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    fn slice_mut<T>(&self, at: usize, n: usize) -> &mut [T] {
        debug_assert_eq!(size_of::<T>(), self.dtype.bytes());
        self.check(at, n);
        // SAFETY: as for `slice`; kernels' tasks write disjoint ranges.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast::<T>().add(at), n) }
    }

    /// The f32 elements themselves.
    ///
    /// # Panics
    /// If the view is not of f32.
    #[inline(always)]
    pub(super) fn f32s(&self, at: usize, n: usize) -> &[f32] {
        assert_eq!(self.dtype, DType::F32);
        self.slice(at, n)
    }

    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(super) fn f32s_mut(&self, at: usize, n: usize) -> &mut [f32] {
        assert_eq!(self.dtype, DType::F32);
        self.slice_mut(at, n)
    }

    /// The bits of bf16 elements.
    ///
    /// # Panics
    /// If the view is not of bf16.
    #[inline(always)]
    pub(super) fn bf16_bits(&self, at: usize, n: usize) -> &[u16] {
        assert_eq!(self.dtype, DType::Bf16);
        self.slice(at, n)
    }

    /// The i32 elements themselves.
    ///
    /// # Panics
    /// If the view is not of i32.
    #[inline(always)]
    pub(super) fn i32s(&self, at: usize, n: usize) -> &[i32] {
        assert_eq!(self.dtype, DType::I32);
        self.slice(at, n)
    }

    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(super) fn i32s_mut(&self, at: usize, n: usize) -> &mut [i32] {
        assert_eq!(self.dtype, DType::I32);
        self.slice_mut(at, n)
    }

    /// Widens elements `at..at + out.len()` to f32. Masks become 0 and 1; i32 is kept as its bits.
    #[inline(always)]
    pub fn load(&self, at: usize, out: &mut [f32]) {
        let n = out.len();
        match self.dtype {
            DType::F32 => copy(out, self.slice(at, n)),
            DType::Bf16 => {
                for (o, &x) in out.iter_mut().zip(self.slice::<u16>(at, n)) {
                    *o = bf16_to_f32(x);
                }
            }
            DType::F16 => self.slice::<f16>(at, n).convert_to_f32_slice(out),
            DType::I32 => {
                for (o, &x) in out.iter_mut().zip(self.slice::<i32>(at, n)) {
                    *o = f32::from_bits(x as u32);
                }
            }
            DType::Bool => {
                for (o, &x) in out.iter_mut().zip(self.slice::<u8>(at, n)) {
                    *o = if x != 0 { 1.0 } else { 0.0 };
                }
            }
            DType::Compute | DType::Sub(_) => unresolved(self.dtype),
        }
    }

    /// As [`Buf::load`], from every `stride`-th element.
    #[inline(always)]
    pub fn load_strided(&self, at: usize, stride: isize, out: &mut [f32]) {
        match stride {
            1 => self.load(at, out),
            0 => out.fill(self.get(at)),
            _ => match self.dtype {
                DType::F32 => gather(self.slice::<f32>(0, self.len), at, stride, out, |x| x),
                DType::Bf16 => gather(self.slice::<u16>(0, self.len), at, stride, out, bf16_to_f32),
                _ => {
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = self.get(at.wrapping_add_signed(i as isize * stride));
                    }
                }
            },
        }
    }

    /// Rounds `x` into elements `at..at + x.len()`.
    #[inline(always)]
    pub fn store(&self, at: usize, x: &[f32]) {
        let n = x.len();
        match self.dtype {
            DType::F32 => copy(self.slice_mut(at, n), x),
            DType::Bf16 => {
                for (o, &x) in self.slice_mut::<u16>(at, n).iter_mut().zip(x) {
                    *o = f32_to_bf16(x);
                }
            }
            DType::F16 => self.slice_mut::<f16>(at, n).convert_from_f32_slice(x),
            DType::I32 => {
                for (o, &x) in self.slice_mut::<i32>(at, n).iter_mut().zip(x) {
                    *o = x.to_bits() as i32;
                }
            }
            DType::Bool => {
                for (o, &x) in self.slice_mut::<u8>(at, n).iter_mut().zip(x) {
                    *o = u8::from(x != 0.0);
                }
            }
            DType::Compute | DType::Sub(_) => unresolved(self.dtype),
        }
    }

    /// As [`Buf::store`], into every `stride`-th element.
    #[inline(always)]
    pub fn store_strided(&self, at: usize, stride: isize, x: &[f32]) {
        if stride == 1 {
            return self.store(at, x);
        }
        for (i, &x) in x.iter().enumerate() {
            self.set(at.wrapping_add_signed(i as isize * stride), x);
        }
    }

    /// Adds `x` to the f32 elements `at..at + x.len()`.
    #[inline(always)]
    pub fn add(&self, at: usize, x: &[f32]) {
        for (o, &x) in self.f32s_mut(at, x.len()).iter_mut().zip(x) {
            *o += x;
        }
    }

    /// One element, as [`Buf::load`] gives it.
    #[inline(always)]
    pub fn get(&self, at: usize) -> f32 {
        let mut x = [0.0];
        match self.dtype {
            DType::F16 => x[0] = self.slice::<f16>(at, 1)[0].to_f32(),
            _ => self.load(at, &mut x),
        }
        x[0]
    }

    /// One element, as [`Buf::store`] rounds it.
    #[inline(always)]
    pub fn set(&self, at: usize, x: f32) {
        match self.dtype {
            DType::F16 => self.slice_mut::<f16>(at, 1)[0] = f16::from_f32(x),
            _ => self.store(at, &[x]),
        }
    }
}

#[cold]
fn unresolved(dtype: DType) -> ! {
    panic!("{dtype} reached a kernel: linking resolves it")
}

#[inline(always)]
fn gather<T: Copy>(all: &[T], at: usize, stride: isize, out: &mut [f32], widen: impl Fn(T) -> f32) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = widen(all[at.wrapping_add_signed(i as isize * stride)]);
    }
}

/// Copies; halves of heads are so short that a call would take longer.
#[inline(always)]
fn copy(to: &mut [f32], from: &[f32]) {
    #[inline(always)]
    fn short<const N: usize>(to: &mut [f32], from: &[f32]) {
        to[..N].copy_from_slice(&from[..N]);
    }
    match to.len() {
        16 => short::<16>(to, from),
        32 => short::<32>(to, from),
        64 => short::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Widens bf16 bits.
#[inline(always)]
pub(super) fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Rounds to bf16 bits, ties to even; a NaN stays a NaN.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if x.is_nan() { nan } else { rounded }) as u16
}

/// Rounds each element to `dtype` and widens it again; integers and masks have no rounding.
#[inline(always)]
pub(super) fn round_in_place(dtype: DType, x: &mut [f32]) {
    match dtype {
        DType::Bf16 => {
            for x in x {
                *x = bf16_to_f32(f32_to_bf16(*x));
            }
        }
        DType::F16 => {
            const CHUNK: usize = 64;
            let mut half = [f16::ZERO; CHUNK];
            for x in x.chunks_mut(CHUNK) {
                let half = &mut half[..x.len()];
                half.convert_from_f32_slice(x);
                half.convert_to_f32_slice(x);
            }
        }
        DType::F32 | DType::I32 | DType::Bool => {}
        DType::Compute | DType::Sub(_) => unresolved(dtype),
    }
}

/// `x` rounded to `dtype`.
pub(super) fn round(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Owned memory with a view, for tests.

    use super::*;

    /// Memory of a buffer; prefilled with NaN (f32, bf16, f16), -1 (i32) or true.
    pub struct Owned {
        words: Vec<u64>,
        len: usize,
        dtype: DType,
    }

    impl Owned {
        pub fn poisoned(dtype: DType, len: usize) -> Owned {
            let words = vec![u64::MAX; (len * dtype.bytes()).div_ceil(8)];
            Owned { words, len, dtype }
        }

        /// Holds `x`, rounded to `dtype`.
        pub fn of(dtype: DType, x: &[f32]) -> Owned {
            let mut o = Owned::poisoned(dtype, x.len());
            o.buf().store(0, x);
            o
        }

        pub fn ids(x: &[i32]) -> Owned {
            let mut o = Owned::poisoned(DType::I32, x.len());
            o.buf().i32s_mut(0, x.len()).copy_from_slice(x);
            o
        }

        pub fn buf(&mut self) -> Buf {
            // SAFETY: tests keep the owner alive while they use the view, and give outputs to one kernel at a time.
            unsafe { Buf::new(self.words.as_mut_ptr().cast(), self.len * self.dtype.bytes(), self.dtype) }
        }

        pub fn values(&mut self) -> Vec<f32> {
            let mut out = vec![0.0; self.len];
            self.buf().load(0, &mut out);
            out
        }

        pub fn bits(&mut self) -> Vec<u32> {
            self.values().iter().map(|x| x.to_bits()).collect()
        }
    }

    /// Pseudo-random numbers of both signs in (−1, 1), the same on every run.
    pub fn noise(seed: u64, n: usize) -> Vec<f32> {
        let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
        (0..n)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                ((s >> 40) as f32 / (1u64 << 23) as f32) - 1.0
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Owned, noise};
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for bits in
            (0..=u32::MAX).step_by(4099).chain([0x7fc0_0000, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff, 0x7f80_0001])
        {
            let x = f32::from_bits(bits);
            assert_eq!(f32_to_bf16(x), bf16::from_f32(x).to_bits(), "{bits:#x}");
        }
    }

    #[test]
    fn loads_give_what_stores_rounded() {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for n in [0, 1, 7, 64, 131] {
                let x = noise(n as u64, n);
                let mut o = Owned::of(dtype, &x);
                let want: Vec<f32> = x.iter().map(|&x| round(dtype, x)).collect();
                assert_eq!(o.values(), want);
                let mut rounded = x.clone();
                round_in_place(dtype, &mut rounded);
                assert_eq!(rounded, want);
                let mut back = vec![0.0; n];
                if n > 0 {
                    o.buf().load_strided(n - 1, -1, &mut back);
                    back.reverse();
                    assert_eq!(back, want);
                }
            }
        }
        let mut ids = Owned::ids(&[-1, 0, 7, i32::MIN]);
        assert_eq!(ids.buf().i32s(0, 4), &[-1, 0, 7, i32::MIN]);
        let mut masks = Owned::of(DType::Bool, &[0.0, 1.0, 5.0]);
        assert_eq!(masks.values(), [0.0, 1.0, 1.0]);
    }
}
