// A CUDA driver that does nothing and succeeds: Triton and our own launches run all of their host code over it.
//
// It is found as libcuda.so.1. Pointers are the host's; no kernel runs. What a launch got can be read from the null_*
// variables; the reader sets the sizes of the kernel's parameters before.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define SUCCEEDS(name) \
  EXPORT int name(void) { return 0; }

enum { kMaxParameters = 96, kRefusedWhileCapturing = 900, kNotFound = 500 };

EXPORT unsigned long long null_driver_launches;
EXPORT int null_num_sizes;
EXPORT unsigned null_sizes[kMaxParameters];
EXPORT unsigned char null_driver_parameters[kMaxParameters][8];
EXPORT unsigned null_driver_shape[7];  // grid, block, bytes of shared memory
EXPORT void *null_driver_stream, *null_driver_function;

static __thread void* context;
static void* const kPrimary = (void*)0x1000;

EXPORT int cuInit(unsigned flags) { return 0; }
EXPORT int cuDriverGetVersion(int* said) {
  *said = 13000;
  return 0;
}
EXPORT int cuDeviceGetCount(int* said) {
  *said = 1;
  return 0;
}
EXPORT int cuDeviceGet(int* said, int index) {
  *said = index;
  return 0;
}
EXPORT int cuDeviceGetName(char* name, int bytes, int device) {
  strncpy(name, "NVIDIA H200 (null)", (size_t)bytes);
  return 0;
}
EXPORT int cuDeviceGetAttribute(int* said, int attribute, int device) {
  static const int kValues[][2] = {{75, 9},      {76, 0},     {16, 132},   {10, 32},  {8, 49152},    {97, 232448},
                                   {81, 233472}, {82, 65536}, {12, 65536}, {1, 1024}, {38, 60 << 20}};
  *said = 1;
  for (size_t i = 0; i < sizeof kValues / sizeof *kValues; ++i) {
    if (kValues[i][0] == attribute) *said = kValues[i][1];
  }
  return 0;
}
EXPORT int cuDeviceTotalMem_v2(size_t* said, int device) {
  *said = 150ULL << 30;
  return 0;
}

EXPORT int cuCtxGetCurrent(void** said) {
  *said = context;
  return 0;
}
EXPORT int cuCtxSetCurrent(void* given) {
  context = given;
  return 0;
}
EXPORT int cuCtxGetDevice(int* said) {
  *said = 0;
  return 0;
}
EXPORT int cuCtxPopCurrent_v2(void** said) {
  *said = context;
  return 0;
}
EXPORT int cuCtxGetLimit(size_t* said, int limit) {
  *said = 1 << 20;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void** said, int device) {
  *said = kPrimary;
  return 0;
}
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
SUCCEEDS(cuDevicePrimaryCtxRelease_v2)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cuCtxSynchronize)
SUCCEEDS(cuCtxPushCurrent_v2)

/// Loads a module, unless a graph is being captured: CUDA then refuses it.
static int loaded(void** module) {
  const int* const is_capturing = dlsym(RTLD_DEFAULT, "null_is_capturing");
  if (is_capturing && *is_capturing) return kRefusedWhileCapturing;
  *module = (void*)0x2000;
  return 0;
}
EXPORT int cuModuleLoad(void** module, const char* file) { return loaded(module); }
EXPORT int cuModuleLoadData(void** module, const void* image) { return loaded(module); }
EXPORT int cuModuleLoadDataEx(void** module, const void* image) { return loaded(module); }
EXPORT int cuLibraryLoadData(void** library) { return loaded(library); }
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
  static char* next = (char*)0x3000;
  *function = next += 16;
  return 0;
}
EXPORT int cuModuleGetGlobal_v2(void* address, void* bytes, void* module, const char* name) { return kNotFound; }
EXPORT int cuFuncGetAttribute(int* said, int attribute, void* function) {
  *said = attribute == 0 ? 1024 : 0;
  return 0;
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* said) {
  *said = 8;
  return 0;
}
EXPORT int cuOccupancyMaxActiveClusters(int* said) {
  *said = 1;
  return 0;
}
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cuTensorMapEncodeIm2col)

static int launched(void* function, const unsigned* shape, void* stream, void** parameters) {
  ++null_driver_launches;
  for (int i = 0; i < null_num_sizes; ++i) memcpy(null_driver_parameters[i], parameters[i], null_sizes[i]);
  memcpy(null_driver_shape, shape, sizeof null_driver_shape);
  null_driver_stream = stream;
  null_driver_function = function;
  return 0;
}
typedef struct {
  unsigned shape[7];
  void* stream;
} Config;
EXPORT int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
  return launched(function, config->shape, config->stream, parameters);
}
EXPORT int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, void* stream, void** parameters,
                          void** extra) {
  const unsigned shape[7] = {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
  return launched(function, shape, stream, parameters);
}

EXPORT int cuPointerGetAttribute(void* said, int attribute, unsigned long long pointer) {
  memcpy(said, &pointer, sizeof pointer);
  return 0;
}
EXPORT int cuPointerGetAttributes(unsigned count, int* attributes, void** said, unsigned long long pointer) {
  for (unsigned i = 0; i < count; ++i) memcpy(said[i], &pointer, sizeof pointer);
  return 0;
}
EXPORT int cuStreamIsCapturing(void* stream, int* said) {
  int (*const ask)(void*, int*) = (int (*)(void*, int*))dlsym(RTLD_DEFAULT, "cudaStreamIsCapturing");
  *said = 0;
  return ask ? ask(stream, said) : 0;
}
SUCCEEDS(cuMemcpyDtoH_v2)
SUCCEEDS(cuMemcpyHtoD_v2)
SUCCEEDS(cuMemAlloc_v2)
SUCCEEDS(cuMemFree_v2)
SUCCEEDS(cuStreamSynchronize)
EXPORT int cuGetErrorString(int error, const char** said) {
  *said = error == kRefusedWhileCapturing ? "operation not permitted when stream is capturing" : "null driver";
  return 0;
}
EXPORT int cuGetErrorName(int error, const char** said) {
  *said = "NULL_DRIVER";
  return 0;
}
EXPORT int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long long flags, void* status) {
  *function = NULL;
  return kNotFound;
}
