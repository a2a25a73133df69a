"""A GPU in the words of XLA's compiler (GpuTargetConfigProto, as text)."""

from mixjax.chips.catalog import Chip

# Limits that all GPUs of the catalogue share.
TEMPLATE = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {optin}
  shared_memory_per_core: {shared}
  core_count: {cores}
  fpus_per_core: {fpus}
  clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  ecc_enabled: true
  name: "{name}"
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "9.10.0"
  device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def describe(chip: Chip, cuda: str) -> str:
    """The description of a GPU; cuda: the version of the toolkit, such as "13.0.0"."""
    gpu = chip.gpu
    major, minor = gpu.capability
    return TEMPLATE.format(
        optin=gpu.shared_per_core - 1024,
        shared=gpu.shared_per_core,
        cores=gpu.cores,
        fpus=64 if gpu.capability == (8, 0) else 128,
        clock=gpu.clock_ghz,
        bandwidth=int(chip.bandwidth),
        cache=gpu.cache,
        memory=int(chip.memory / 0.9),
        major=major,
        minor=minor,
        # From Hopper on, instructions of one architecture alone: sm_90a, sm_100a.
        accelerated="feature_extension: ACCELERATED_FEATURES" if major >= 9 else "",
        name=chip.kind,
        cuda=cuda,
    )
