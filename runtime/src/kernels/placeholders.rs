//! Element types and widths that a kernel is written for; a launch registers what they stand for.

use cubecl::prelude::*;
use cubecl::{define_scalar, define_size};
use kiln_compiler::fuse::kernel::MAX_DTYPES;

define_scalar!(pub F0);
define_scalar!(pub F1);
define_scalar!(pub F2);
define_scalar!(pub F3);
define_scalar!(pub F4);
define_scalar!(pub F5);
define_scalar!(pub F6);
define_scalar!(pub F7);
define_scalar!(pub F8);
define_scalar!(pub F9);
define_scalar!(pub F10);
define_scalar!(pub F11);
define_size!(pub N0);

/// One lane: scalars are vectors of this width, so that one spelling serves both.
pub type N1 = Const<1>;

/// Binds the placeholders in the scope of a kernel.
pub fn register(scope: &mut Scope, types: &[StorageType; MAX_DTYPES], width: usize) {
    scope.register_type::<F0>(types[0]);
    scope.register_type::<F1>(types[1]);
    scope.register_type::<F2>(types[2]);
    scope.register_type::<F3>(types[3]);
    scope.register_type::<F4>(types[4]);
    scope.register_type::<F5>(types[5]);
    scope.register_type::<F6>(types[6]);
    scope.register_type::<F7>(types[7]);
    scope.register_type::<F8>(types[8]);
    scope.register_type::<F9>(types[9]);
    scope.register_type::<F10>(types[10]);
    scope.register_type::<F11>(types[11]);
    scope.register_size::<N0>(width);
}
