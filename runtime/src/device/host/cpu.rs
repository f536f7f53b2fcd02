//! Which instruction set the kernels use: detected once, capped by `KILN_CPU`.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the build targets.
    Portable,
    /// NEON, which every AArch64 has.
    Neon,
    /// x86-64-v3: AVX2, FMA, F16C.
    V3,
    /// x86-64-v4: AVX-512 F, BW, DQ, VL.
    V4,
}

impl Isa {
    /// The best set that this processor has, at most the one that `KILN_CPU` names (`x86-64`, `x86-64-v3`, `x86-64-v4`).
    pub fn detect() -> Isa {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| {
            let cap = match std::env::var("KILN_CPU").as_deref() {
                Ok("x86-64" | "portable") => Isa::Portable,
                Ok("x86-64-v3") => Isa::V3,
                _ => Isa::V4,
            };
            Isa::supported().min(cap)
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn supported() -> Isa {
        use std::arch::is_x86_feature_detected as has;
        let v3 = has!("avx2") && has!("fma") && has!("f16c") && has!("bmi1") && has!("bmi2");
        let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
        match (v3, v4) {
            (_, true) => Isa::V4,
            (true, false) => Isa::V3,
            (false, false) => Isa::Portable,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn supported() -> Isa {
        Isa::Neon
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn supported() -> Isa {
        Isa::Portable
    }
}

/// Whether the processor multiplies pairs of bf16 and adds the products to f32 (AVX-512 BF16); not under a cap by `KILN_CPU`.
pub fn has_bf16_dot() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        let has = std::arch::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        has && Isa::detect() == Isa::V4 && std::env::var_os("KILN_CPU").is_none()
    })
}

/// Elements of f32 in a cache line.
pub const LINE: usize = 16;

/// Asks for a line of memory; any address will do.
#[inline(always)]
pub fn prefetch(at: *const f32) {
    // SAFETY: a prefetch has no effect that a program can see, whatever the address, and every x86-64 has it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    // SAFETY: as above, for AArch64.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// How inner loops multiply and add: one rounding where the instruction exists, two where it does not.
pub trait Fma: Copy {
    /// Whether [`Fma::fma`] rounds once.
    const FUSED: bool;
    /// a·b + c
    fn fma(a: f32, b: f32, c: f32) -> f32;
}

/// Two roundings: without the instruction, `mul_add` is a slow library call.
#[derive(Clone, Copy)]
pub struct Separate;

/// One rounding.
#[derive(Clone, Copy)]
pub struct Fused;

impl Fma for Separate {
    const FUSED: bool = false;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

impl Fma for Fused {
    const FUSED: bool = true;
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// Compiles `body::<F: Fma>(args)`, which must be `#[inline(always)]`, once per instruction set, and calls the detected one.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
            fn v3($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::device::host::cpu::Fused>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,avx512f,avx512bw,avx512dq,avx512vl")]
            fn v4($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::device::host::cpu::Fused>($($arg),*)
            }
            match $crate::device::host::cpu::Isa::detect() {
                // SAFETY: `detect` returns V4 only where the processor has the features that `v4` enables.
                #[cfg(target_arch = "x86_64")]
                $crate::device::host::cpu::Isa::V4 => unsafe { v4($($arg),*) },
                // SAFETY: as above, for V3.
                #[cfg(target_arch = "x86_64")]
                $crate::device::host::cpu::Isa::V3 => unsafe { v3($($arg),*) },
                // Its vectors and its fused multiply-add belong to the architecture.
                #[cfg(target_arch = "aarch64")]
                $crate::device::host::cpu::Isa::Neon => $body::<$crate::device::host::cpu::Fused>($($arg),*),
                _ => $body::<$crate::device::host::cpu::Separate>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
