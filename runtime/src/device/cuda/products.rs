//! Products by cuBLASLt, where it is installed: its matrices are column-major, so a row-major c = a·b is its cᵀ = bᵀ·aᵀ.

use super::server::{Allocation, Stream, address};
use crate::device::cube::{CubeError, Matrix, MatrixProduct, Memory, Product};
use cudarc::cublaslt::{result, sys};
use kiln_compiler::ir::DType;
use std::ffi::c_void;
use std::sync::Arc;

/// What NVIDIA advises for Hopper; enough for all before it.
const WORKSPACE: usize = 32 << 20;
/// What allocations are aligned to.
const ALIGNMENT: u32 = 256;

fn failed(error: result::CublasError) -> CubeError {
    CubeError::Failed(format!("cuBLASLt says {error}"))
}

/// The library, with memory for its sums.
#[derive(Debug)]
pub struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Allocation,
    stream: Arc<Stream>,
}

// SAFETY: a handle may be used by every thread, and launches follow each other on one stream, so that they share the workspace.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: it was created once, and no product is left.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Products {
    /// The library, if it is installed.
    ///
    /// # Errors
    /// If it is, and does not start.
    pub fn find(stream: &Arc<Stream>) -> Result<Option<Products>, CubeError> {
        // SAFETY: it loads the library and unloads it again; its constructors need nothing from us.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        stream.card.bind()?;
        let workspace = Allocation::new(stream, WORKSPACE)?;
        let handle = result::create_handle().map_err(failed)?;
        Ok(Some(Products { handle, workspace, stream: stream.clone() }))
    }

    /// How the library computes a product; none if it has no way.
    ///
    /// # Errors
    /// What the library says.
    pub fn plan(self: &Arc<Self>, product: &MatrixProduct) -> Result<Option<Arc<dyn Product>>, CubeError> {
        self.stream.card.bind()?;
        let (Some(from), Some(to)) = (element(product.dtype), element(product.to)) else { return Ok(None) };
        let MatrixProduct { m, n, k, batches, a, b, c, .. } = *product;
        let description =
            Description(result::create_matmul_desc(COMPUTE, sys::cudaDataType_t::CUDA_R_32F).map_err(failed)?);
        description.transpose(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, b.transposed)?;
        description.transpose(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, a.transposed)?;
        let [left, right] = [Layout::new(from, (k, n), b, batches)?, Layout::new(from, (m, k), a, batches)?];
        let out = Layout::new(to, (m, n), c, batches)?;
        let preference = Preference(result::create_matmul_pref().map_err(failed)?);
        preference.set(
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            WORKSPACE as u64,
        )?;
        let aligned = |matrix: Matrix, dtype: DType| {
            let bytes = (matrix.first * width(dtype)) as u32;
            if bytes == 0 { ALIGNMENT } else { ALIGNMENT.min(1 << bytes.trailing_zeros()) }
        };
        use sys::cublasLtMatmulPreferenceAttributes_t as P;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(b, product.dtype))?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(a, product.dtype))?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned(c, product.to))?;
        preference.set(P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned(c, product.to))?;
        // SAFETY: all descriptions live until the end of this function.
        let found = unsafe {
            result::get_matmul_algo_heuristic(self.handle, description.0, left.0, right.0, out.0, out.0, preference.0)
        };
        let Ok(found) = found else { return Ok(None) };
        let first = [b.first * width(product.dtype), a.first * width(product.dtype), c.first * width(product.to)];
        Ok(Some(Arc::new(Planned {
            products: self.clone(),
            description,
            layouts: [left, right, out],
            algorithm: found.algo,
            first: first.map(|bytes| bytes as u64),
        })))
    }
}

/// Sums are f32, and f32 operands are multiplied as they are: no TF32.
const COMPUTE: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;

fn element(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::F32 => Some(sys::cudaDataType_t::CUDA_R_32F),
        DType::Bf16 => Some(sys::cudaDataType_t::CUDA_R_16BF),
        DType::F16 => Some(sys::cudaDataType_t::CUDA_R_16F),
        DType::I32 | DType::Bool | DType::Compute | DType::Sub(_) => None,
    }
}

fn width(dtype: DType) -> usize {
    if dtype == DType::F32 { 4 } else { 2 }
}

#[derive(Debug)]
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn transpose(&self, which: sys::cublasLtMatmulDescAttributes_t, on: bool) -> Result<(), CubeError> {
        let value = i32::from(on);
        // SAFETY: the attribute is an i32, which the library copies.
        let set = unsafe {
            let from = std::ptr::from_ref(&value).cast::<c_void>();
            result::set_matmul_desc_attribute(self.0, which, from, size_of::<i32>())
        };
        set.map_err(failed)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(&self, which: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<(), CubeError> {
        // SAFETY: the caller gives the attribute's own type, which the library copies.
        let set = unsafe {
            let from = std::ptr::from_ref(&value).cast::<c_void>();
            result::set_matmul_pref_attribute(self.0, which, from, size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A row-major matrix of `rows` × `columns` as the library's column-major one of `columns` × `rows`; one whose columns are contiguous as
    /// it is.
    fn new(
        dtype: sys::cudaDataType,
        (rows, columns): (usize, usize),
        matrix: Matrix,
        batches: usize,
    ) -> Result<Layout, CubeError> {
        let (first, second) = if matrix.transposed { (rows, columns) } else { (columns, rows) };
        let created = result::create_matrix_layout(dtype, first as u64, second as u64, matrix.step as i64);
        let layout = Layout(created.map_err(failed)?);
        use sys::cublasLtMatrixLayoutAttribute_t as L;
        layout.set(L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batches as i32)?;
        layout.set(L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.batch_step as i64)?;
        Ok(layout)
    }

    fn set<T>(&self, which: sys::cublasLtMatrixLayoutAttribute_t, value: T) -> Result<(), CubeError> {
        // SAFETY: the caller gives the attribute's own type, which the library copies.
        let set = unsafe {
            let from = std::ptr::from_ref(&value).cast::<c_void>();
            result::set_matrix_layout_attribute(self.0, which, from, size_of::<T>())
        };
        set.map_err(failed)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it was created once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// A product with the algorithm that the library's heuristic takes.
#[derive(Debug)]
struct Planned {
    products: Arc<Products>,
    description: Description,
    /// Of b, a and c.
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes before the first elements of b, a and c.
    first: [u64; 3],
}

// SAFETY: descriptions are read only.
unsafe impl Send for Planned {}
// SAFETY: as above.
unsafe impl Sync for Planned {}

impl Product for Planned {
    fn launch(&self, a: &Memory, b: &Memory, c: &Memory, accumulate: bool) -> Result<(), CubeError> {
        let Products { handle, workspace, stream } = &*self.products;
        let _entered = stream.enter();
        stream.card.bind()?;
        let (alpha, beta) = (1.0_f32, if accumulate { 1.0_f32 } else { 0.0 });
        let scalar = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
        let [left, right, out] = [b, a, c].map(address);
        let at = |address: u64, i: usize| (address + self.first[i]) as *mut c_void;
        let [of_left, of_right, of_out] = &self.layouts;
        // SAFETY: the plan's matrices lie inside the pieces, whose lengths the caller has checked; the scalars are read before this returns.
        let launched = unsafe {
            result::matmul(
                *handle,
                self.description.0,
                scalar(&alpha),
                scalar(&beta),
                at(left, 0),
                of_left.0,
                at(right, 1),
                of_right.0,
                at(out, 2),
                of_out.0,
                at(out, 2),
                of_out.0,
                &self.algorithm,
                workspace.at as *mut c_void,
                WORKSPACE,
                stream.handle.cast(),
            )
        };
        launched.map_err(failed)
    }
}
