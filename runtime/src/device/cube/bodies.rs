//! What kernels are: each body is built once on the caller's thread, where a panic can be told, and its content becomes part of the key
//! under which compiled kernels are kept – in memory and on disk. A launch is compared with the arguments that the body registered.

use super::{Bound, CubeDevice, CubeError, DefineFn, Spec};
use cubecl::ir::Type;
use cubecl::prelude::*;
use std::collections::HashMap;
use xxhash_rust::xxh3::xxh3_64;

/// A body that has been built.
#[derive(Clone, Debug)]
pub struct Body {
    /// Hash of its code and arguments.
    pub content: u64,
    buffers: Vec<Type>,
    scalars: usize,
}

/// Bodies by what they were asked for; several functions may build the same.
pub type Bodies = HashMap<Spec, Vec<(usize, Body)>>;

impl Body {
    fn of(definition: &KernelDefinition) -> Body {
        let KernelDefinition { buffers, scalars, cube_dim, body, .. } = definition;
        // The text of the code lists every instruction with its constants; the tables of types that it was made with are in the spec.
        let text = format!("{buffers:?} {scalars:?} {cube_dim:?} {:?}\n{body}", body.const_arrays);
        Body {
            content: xxh3_64(text.as_bytes()),
            buffers: buffers.iter().map(|b| b.ty).collect(),
            scalars: scalars.iter().map(|s| s.count).sum(),
        }
    }

    /// Refuses a launch with other arguments: CubeCL would drop it, and everything behind it.
    pub(super) fn check_arguments(&self, kernel: &str, buffers: &[Bound<'_>], scalars: usize) -> Result<(), CubeError> {
        let counts = [("buffers", self.buffers.len(), buffers.len()), ("scalars", self.scalars, scalars)];
        for (what, needed, got) in counts {
            if needed != got {
                return Err(CubeError::Arguments { kernel: kernel.to_owned(), what, needed, got });
            }
        }
        let differs = |(own, bound): (&Type, &Bound<'_>)| *own != bound.ty;
        match self.buffers.iter().zip(buffers).position(differs) {
            None => Ok(()),
            Some(i) => Err(CubeError::Buffer {
                kernel: kernel.to_owned(),
                buffer: i,
                got: buffers[i].ty.to_string(),
                needed: self.buffers[i].to_string(),
            }),
        }
    }
}

impl CubeDevice {
    /// The body that `define` builds, built when it is first asked for.
    ///
    /// # Errors
    /// [`CubeError::Build`] if building panics, [`CubeError::Body`] if another function has built another body for the same key.
    pub(super) fn body(&self, spec: &Spec, define: DefineFn) -> Result<Body, CubeError> {
        let mut bodies = self.bodies.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = bodies.get(spec).map(Vec::as_slice).unwrap_or_default();
        let address = define as usize;
        if let Some((_, body)) = known.iter().find(|(a, _)| *a == address) {
            return Ok(body.clone());
        }
        let body = Body::of(&self.profile.try_define(spec, define)?);
        if known.iter().any(|(_, other)| other.content != body.content) {
            return Err(CubeError::Body { kernel: spec.name.clone() });
        }
        bodies.entry(spec.clone()).or_default().push((address, body.clone()));
        Ok(body)
    }
}
