//! Arguments of a kernel, registered in the order in which a launch passes them.

use cubecl::prelude::*;

/// The next buffer, read only.
pub fn input<C: CubePrimitive>(builder: &mut KernelBuilder) -> <Array<C> as CubeType>::ExpandType {
    let ty = C::as_type(&builder.scope);
    builder.input_array(ty).into()
}

/// The next buffer, written.
pub fn output<C: CubePrimitive>(builder: &mut KernelBuilder) -> <Array<C> as CubeType>::ExpandType {
    let ty = C::as_type(&builder.scope);
    builder.output_array(ty).into()
}

/// The next buffer: u32 words.
pub fn words(builder: &mut KernelBuilder) -> <Array<u32> as CubeType>::ExpandType {
    input::<u32>(builder)
}

/// The next position or size.
pub fn position(builder: &mut KernelBuilder) -> <usize as CubeType>::ExpandType {
    <usize as LaunchArg>::expand(&(), builder)
}

/// The next number.
pub fn number(builder: &mut KernelBuilder) -> <f32 as CubeType>::ExpandType {
    <f32 as LaunchArg>::expand(&(), builder)
}
