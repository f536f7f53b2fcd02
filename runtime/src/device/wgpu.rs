//! Adapters of wgpu: Vulkan, Metal, DX12 and WebGPU. The driver is looked for at run time, so executables start without one.

use super::cube::{Barriers, CubeDevice, CubeError, CubeclServer, Found, Shape, enable_cache};
use cubecl::prelude::Runtime;
use cubecl::wgpu::{AutoGraphicsApi, GraphicsApi, WgpuDevice, WgpuRuntime};
use wgpu::{Backends, DeviceType, Instance, InstanceDescriptor, PowerPreference, RequestAdapterOptions};

/// What an adapter calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// Its driver, with the version.
    pub driver: String,
    /// Whether it computes on the processor: correct, and slow.
    pub is_software: bool,
}

/// The adapter that [`open`] would take, if there is one.
pub fn adapter() -> Result<Adapter, CubeError> {
    let descriptor = InstanceDescriptor {
        backends: Backends::from(AutoGraphicsApi::backend()),
        ..InstanceDescriptor::new_without_display_handle()
    };
    let options = RequestAdapterOptions {
        power_preference: PowerPreference::HighPerformance,
        ..RequestAdapterOptions::default()
    };
    let found = cubecl::future::block_on(Instance::new(descriptor).request_adapter(&options));
    let info = found.map_err(|_| CubeError::NoAdapter("wgpu"))?.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    Ok(Adapter { name: info.name, driver, is_software: info.device_type == DeviceType::Cpu })
}

/// Opens the best adapter.
pub fn open() -> Result<CubeDevice, CubeError> {
    // CubeCL panics where there is no adapter, so it is asked only after one was seen.
    let adapter = adapter()?;
    let identity = format!("{} {}", adapter.name, adapter.driver);
    // Before CubeCL reads its configuration.
    let cache = enable_cache(&identity);
    let client = WgpuRuntime::client(&WgpuDevice::DefaultDevice);
    let (shape, capacity) = match adapter.is_software {
        true => (SOFTWARE, super::machine_memory()),
        false => (HARDWARE, None),
    };
    let (properties, target) = (client.properties().clone(), WgpuRuntime::target_properties);
    let server = Box::new(CubeclServer::new(client));
    Ok(CubeDevice::new(Found { server, properties, target, shape, capacity, identity, cache }))
}

/// Software drivers run units one after the other and pay for each barrier: products of XS take 6.0 s a step without, 11.0 s with them.
pub const SOFTWARE: Shape = Shape {
    map_units: 64,
    row_units: 32,
    column_teams: 8,
    plane: None,
    width: 4,
    narrow_width: 4,
    logits: 1 << 22,
    converts: false,
    barriers: Barriers::Dear,
};
/// Four cubes for each of about a hundred multiprocessors share a sum over rows; 256 units fill one with two cubes.
pub const HARDWARE: Shape = Shape {
    map_units: 256,
    row_units: 256,
    column_teams: 512,
    plane: None,
    width: 4,
    narrow_width: 4,
    logits: 1 << 22,
    converts: false,
    barriers: Barriers::Cheap,
};
