//! Kernels as Rust tokens: a region's program in, one non-generic `#[cube]` function and its `define` function out. Element types
//! and vector widths are placeholders that a launch registers, so one emitted kernel serves every precision.
//!
//! The tokens name `gpu` (Kiln's pieces of kernels) and CubeCL's prelude; [`module`] brings both into scope.

mod print;

use crate::fuse::kernel::{Kernel, KernelError};
use crate::fuse::{Abi, BufferArg, Region};
use proc_macro2::{Ident, Span, TokenStream};
use quote::{format_ident, quote};

/// The two functions of one region: `name` and `define_name`.
pub fn kernel(region: &Region, name: &str) -> Result<TokenStream, KernelError> {
    let kernel = Kernel::of(region)?;
    let function = print::function(&kernel, name);
    let define = define(&kernel, &region.abi(), name);
    Ok(quote! { #function #define })
}

/// Emitted functions in a module of their own, which sees nothing of the user's crate. `kiln` is the path of the crate there.
pub fn module(kiln: &TokenStream, name: &Ident, functions: &TokenStream) -> TokenStream {
    // mod __kiln_swiglu {
    //     use ::kiln::__private::{cubecl, gpu};
    //     use cubecl::prelude::*;
    //     ..
    // }
    quote! {
        #[allow(unused, missing_docs, clippy::all)]
        mod #name {
            use #kiln::__private::{cubecl, gpu};
            use cubecl::prelude::*;
            #functions
        }
    }
}

/// Name of the function that builds the kernel `name`.
pub fn define_name(name: &str) -> Ident {
    format_ident!("define_{name}")
}

fn define(kernel: &Kernel, abi: &Abi, name: &str) -> TokenStream {
    let define = define_name(name);
    let function = Ident::new(name, Span::call_site());
    let buffers: Vec<Ident> = kernel.buffers.iter().map(|b| print::ident(&b.name)).collect();
    let registered = kernel.buffers.iter().zip(&abi.buffers).zip(&buffers).map(|((buffer, arg), name)| {
        let element = print::element(buffer);
        match arg {
            BufferArg::Input(_) | BufferArg::Random => quote! { let #name = gpu::input::<#element>(builder); },
            BufferArg::Output(_) | BufferArg::Partial(_) => quote! { let #name = gpu::output::<#element>(builder); },
        }
    });
    let indices: Vec<Ident> = kernel.indices.iter().map(|v| print::local(kernel, *v)).collect();
    let scalars: Vec<Ident> = kernel.scalars.iter().map(|v| print::local(kernel, *v)).collect();
    let slots = print::rounded_slots(kernel);
    // pub fn define_swiglu(builder: &mut KernelBuilder, spec: &gpu::Spec) {
    //     let gate = gpu::input::<Vector<gpu::F0, gpu::N0>>(builder);
    //     ..
    //     let size_s = gpu::position(builder);
    //     let scalar_0 = gpu::number(builder);
    //     swiglu::expand(&mut builder.scope, gate, .., size_s, scalar_0, spec.width, spec.team(), spec.accumulate, spec.rounding(0));
    // }
    quote! {
        pub fn #define(builder: &mut KernelBuilder, spec: &gpu::Spec) {
            #(#registered)*
            #(let #indices = gpu::position(builder);)*
            #(let #scalars = gpu::number(builder);)*
            #function::expand(
                &mut builder.scope, #(#buffers,)* #(#indices,)* #(#scalars,)*
                spec.width, spec.team(), spec.accumulate, #(spec.rounding(#slots),)*
            );
        }
    }
}
