//! The golden tier of emitted kernels: tokens as committed, so that a change of kernels shows in a diff; `kernels` runs them.

use kiln_tests::{folders, regions, snapshot};
use quote::quote;

#[test]
fn emitted_kernels_are_as_committed() {
    let mut wrong = Vec::new();
    for case in regions::cases() {
        let tokens = kiln_compiler::emit::kernel(&case.region, case.name).expect("each region has a kernel");
        let file: syn::File = syn::parse2(quote! { #tokens }).expect("emitted tokens are Rust items");
        let path = folders::root().join(format!("tests/golden/emit/{}.kernel", case.name));
        wrong.extend(snapshot::check(&path, &prettyplease::unparse(&file)).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
