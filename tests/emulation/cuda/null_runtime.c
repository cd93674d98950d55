// A CUDA runtime that does nothing and succeeds: a CUDA build of torch runs all of its host code over it, without a
// GPU.
//
// Preloaded, it takes the place of torch's libcudart and of the runtime inside our library. Memory is the host's; no
// kernel runs. What a launch got can be read from the null_* variables. The device calls itself an H200.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define SUCCEEDS(name, ...) \
  EXPORT cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
// A new handle, which nothing dereferences.
#define MAKES(name, type, ...)           \
  EXPORT cudaError_t name(__VA_ARGS__) { \
    *made = (type)(next_handle += 16);   \
    return cudaSuccess;                  \
  }
#define SAYS(name, type, value, ...)     \
  EXPORT cudaError_t name(__VA_ARGS__) { \
    *said = (type)(value);               \
    return cudaSuccess;                  \
  }

enum { kRecordedBytes = 3000, kClearedBytes = 1 << 24 };

EXPORT unsigned long long null_launches;
EXPORT int null_records;  // how many bytes of parameters are kept in the variables below; 0: nothing is
EXPORT char null_parameters[kRecordedBytes];
EXPORT unsigned null_grid[3], null_block[3];
EXPORT void* null_stream;
EXPORT int null_is_capturing;  // the driver refuses to load modules then

static uintptr_t next_handle = 0x10000;
static __thread int device;
static cudaStream_t captured = (cudaStream_t)-1;

static int devices(void) {
  const char* number = getenv("NULL_GPUS");
  return number ? atoi(number) : 1;
}

SAYS(cudaGetDeviceCount, int, devices(), int* said)
SAYS(cudaGetDevice, int, device, int* said)
SAYS(cudaDriverGetVersion, int, 13000, int* said)
SAYS(cudaRuntimeGetVersion, int, 13000, int* said)
SAYS(cudaStreamGetPriority, int, 0, cudaStream_t stream, int* said)
SAYS(cudaDeviceCanAccessPeer, int, 0, int* said, int from, int to)
SAYS(cudaEventElapsedTime, float, 1, float* said, cudaEvent_t from, cudaEvent_t to)
SAYS(cudaEventElapsedTime_v2, float, 1, float* said, cudaEvent_t from, cudaEvent_t to)
SAYS(cudaOccupancyMaxActiveBlocksPerMultiprocessor, int, 8, int* said, const void* f, int threads, size_t shared)
SAYS(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int, 8, int* said, const void* f, int threads,
     size_t shared, unsigned flags)

EXPORT cudaError_t cudaSetDevice(int index) {
  device = index;
  return cudaSuccess;
}

SUCCEEDS(cudaInitDevice, int index, unsigned a, unsigned b)
SUCCEEDS(cudaGetLastError, void)
SUCCEEDS(cudaPeekAtLastError, void)
SUCCEEDS(cudaDeviceSynchronize, void)
SUCCEEDS(cudaProfilerStart, void)
SUCCEEDS(cudaProfilerStop, void)
SUCCEEDS(cudaFuncSetAttribute, const void* f, enum cudaFuncAttribute a, int value)

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp* p, int index) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "NVIDIA H200 (null)");
  p->major = 9;
  p->multiProcessorCount = 132;
  p->warpSize = 32;
  p->totalGlobalMem = 150ULL << 30;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->l2CacheSize = 60 << 20;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 0x7fffffff;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->textureAlignment = 512;
  p->maxBlocksPerMultiProcessor = 32;
  p->unifiedAddressing = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp* p, int index) {
  return cudaGetDeviceProperties(p, index);
}

EXPORT cudaError_t cudaDeviceGetAttribute(int* said, enum cudaDeviceAttr attribute, int index) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *said = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *said = 0;
      break;
    case cudaDevAttrMultiProcessorCount:
      *said = 132;
      break;
    case cudaDevAttrWarpSize:
      *said = 32;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *said = 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *said = 2048;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *said = 49152;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *said = 232448;
      break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      *said = 65536;
      break;
    default:
      *said = 1;
  }
  return cudaSuccess;
}

// Memory is the host's.

EXPORT cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
EXPORT cudaError_t cudaMallocAsync(void** memory, size_t bytes, cudaStream_t stream) {
  return cudaMalloc(memory, bytes);
}
EXPORT cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned flags) { return cudaMalloc(memory, bytes); }
EXPORT cudaError_t cudaMallocHost(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
EXPORT cudaError_t cudaFree(void* memory) {
  free(memory);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) { return cudaFree(memory); }
EXPORT cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
SUCCEEDS(cudaHostRegister, void* memory, size_t bytes, unsigned flags)
EXPORT cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
  *unused = 140ULL << 30;
  *total = 150ULL << 30;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  return cudaMemcpy(to, from, bytes, kind);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int there, const void* from, int here, size_t bytes,
                                       cudaStream_t stream) {
  return cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
}
EXPORT cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  if (bytes < kClearedBytes) memset(memory, value, bytes);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset(memory, value, bytes);
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes* attributes, const void* memory) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->devicePointer = (void*)memory;
  return cudaSuccess;
}

// Streams, events, graphs.

MAKES(cudaStreamCreate, cudaStream_t, cudaStream_t* made)
MAKES(cudaStreamCreateWithFlags, cudaStream_t, cudaStream_t* made, unsigned flags)
MAKES(cudaStreamCreateWithPriority, cudaStream_t, cudaStream_t* made, unsigned flags, int priority)
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
SUCCEEDS(cudaStreamDestroy, cudaStream_t stream)
SUCCEEDS(cudaStreamQuery, cudaStream_t stream)
SUCCEEDS(cudaStreamSynchronize, cudaStream_t stream)
SUCCEEDS(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)

MAKES(cudaEventCreate, cudaEvent_t, cudaEvent_t* made)
MAKES(cudaEventCreateWithFlags, cudaEvent_t, cudaEvent_t* made, unsigned flags)
SUCCEEDS(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
SUCCEEDS(cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned flags)
SUCCEEDS(cudaEventQuery, cudaEvent_t event)
SUCCEEDS(cudaEventSynchronize, cudaEvent_t event)
SUCCEEDS(cudaEventDestroy, cudaEvent_t event)

SAYS(cudaStreamIsCapturing, enum cudaStreamCaptureStatus, stream == captured, cudaStream_t stream,
     enum cudaStreamCaptureStatus* said)
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus* status,
                                            unsigned long long* id, cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                            const cudaGraphEdgeData** edges, size_t* count) {
  *status = (enum cudaStreamCaptureStatus)(stream == captured);
  if (id) *id = 7;
  if (count) *count = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  captured = stream;
  null_is_capturing = mode == cudaStreamCaptureModeGlobal;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* made) {
  captured = (cudaStream_t)-1;
  null_is_capturing = 0;
  *made = (cudaGraph_t)(next_handle += 16);
  return cudaSuccess;
}
SUCCEEDS(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode* mode)
MAKES(cudaGraphInstantiate, cudaGraphExec_t, cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags)
MAKES(cudaGraphInstantiateWithFlags, cudaGraphExec_t, cudaGraphExec_t* made, cudaGraph_t graph,
      unsigned long long flags)
SUCCEEDS(cudaGraphLaunch, cudaGraphExec_t graph, cudaStream_t stream)
SUCCEEDS(cudaGraphUpload, cudaGraphExec_t graph, cudaStream_t stream)
SUCCEEDS(cudaGraphDestroy, cudaGraph_t graph)
SUCCEEDS(cudaGraphExecDestroy, cudaGraphExec_t graph)
SAYS(cudaGraphGetNodes, size_t, 1, cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* said)

// Kernels.

static cudaError_t launched(dim3 grid, dim3 block, void** arguments, cudaStream_t stream) {
  ++null_launches;
  if (!null_records) return cudaSuccess;
  memcpy(null_parameters, arguments[0], null_records < kRecordedBytes ? null_records : kRecordedBytes);
  memcpy(null_grid, &grid, sizeof null_grid);
  memcpy(null_block, &block, sizeof null_block);
  null_stream = stream;
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernel(const void* f, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t stream) {
  return launched(grid, block, arguments, stream);
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void** arguments, size_t shared,
                                      cudaStream_t stream) {
  return launched(grid, block, arguments, stream);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* f, void** arguments) {
  ++null_launches;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes* attributes, const void* f) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult* result) {
  static void* driver;
  if (!driver) driver = dlopen("libcuda.so.1", RTLD_LAZY);
  char second[256];
  snprintf(second, sizeof second, "%s_v2", name);
  *function = driver ? dlsym(driver, name) : NULL;
  if (driver && !*function) *function = dlsym(driver, second);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return *function ? cudaSuccess : cudaErrorSymbolNotFound;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
}

// What nvcc's generated code calls.

static __thread struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed[16];
static __thread int num_pushed;

EXPORT void** __cudaRegisterFatBinary(void* binary) {
  static void* handle;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void** handle) {}
EXPORT void __cudaUnregisterFatBinary(void** handle) {}
EXPORT char __cudaInitModule(void** handle) { return 1; }
EXPORT void __cudaRegisterFunction(void** handle, const void* f, char* host_name, const char* name, int limit,
                                   void* tid, void* bid, void* block, void* grid, int* warp_size) {}
EXPORT void __cudaRegisterVar(void** handle, char* variable, char* address, const char* name, int external,
                              size_t bytes, int is_constant, int is_global) {}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* f) {
  *kernel = (cudaKernel_t)f;
  return cudaSuccess;
}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st* stream) {
  const int at = num_pushed++;
  pushed[at].grid = grid;
  pushed[at].block = block;
  pushed[at].shared = shared;
  pushed[at].stream = stream;
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const int at = --num_pushed;
  *grid = pushed[at].grid;
  *block = pushed[at].block;
  *shared = pushed[at].shared;
  *(cudaStream_t*)stream = pushed[at].stream;
  return cudaSuccess;
}
