// A CUDA runtime without a device: every launch goes to a callback, which runs the kernel's PTX on the emulator.
//
// Only what nvcc's generated code and the launcher call. Errors behave as CUDA's do: a launch returns its own, which is
// also the last error until that is read.
#include <stdbool.h>
#include <stddef.h>

typedef struct {
  unsigned x, y, z;
} Dim3;

enum {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidConfiguration = 9,
  kInvalidDeviceFunction = 98,
  kIllegalAddress = 700,
  kOutOfResources = 701,
  kInvalidDevice = 101,
  kMultiprocessorCount = 16,
  kMaxKernels = 4096
};

/// Multiprocessors of each device.
static const int kMultiprocessors[] = {48, 84, 108, 132};
enum { kDevices = sizeof kMultiprocessors / sizeof *kMultiprocessors };

typedef int (*Callback)(const char* kernel, const Dim3* grid, const Dim3* block, void** arguments, size_t shared_bytes);

static struct {
  const void* function;
  const char* name;
} kernels[kMaxKernels];
static int num_kernels;
static Callback callback;
static int last_error;
static struct {
  Dim3 grid, block;
  size_t shared_bytes;
  void* stream;
} configuration;

static int device;
static int num_questions;

void standin_on_launch(Callback function) { callback = function; }

/// How often a device was asked for an attribute.
int standin_questions(void) { return num_questions; }

static int with_error(int error) {
  if (error != kSuccess) last_error = error;
  return error;
}

int cudaSetDevice(int index) {
  if (index < 0 || index >= kDevices) return with_error(kInvalidDevice);
  device = index;
  return kSuccess;
}

int cudaGetDevice(int* index) {
  *index = device;
  return kSuccess;
}

int cudaDeviceGetAttribute(int* value, int attribute, int index) {
  ++num_questions;
  if (attribute != kMultiprocessorCount) return with_error(kInvalidValue);
  if (index < 0 || index >= kDevices) return with_error(kInvalidDevice);
  *value = kMultiprocessors[index];
  return kSuccess;
}

void** __cudaRegisterFatBinary(void* binary) {
  static void* handle;
  (void)binary;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }
char __cudaInitModule(void** handle) {
  (void)handle;
  return 1;
}

void __cudaRegisterFunction(void** handle, const void* function, char* host_name, const char* name, int thread_limit,
                            void* tid, void* bid, void* block, void* grid, int* warp_size) {
  (void)handle, (void)host_name, (void)thread_limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp_size;
  if (num_kernels == kMaxKernels) return;
  kernels[num_kernels].function = function;
  kernels[num_kernels++].name = name;
}

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, void* stream) {
  configuration.grid = grid;
  configuration.block = block;
  configuration.shared_bytes = shared_bytes;
  configuration.stream = stream;
  return 0;
}

int __cudaPopCallConfiguration(Dim3* grid, Dim3* block, size_t* shared_bytes, void** stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared_bytes = configuration.shared_bytes;
  *stream = configuration.stream;
  return kSuccess;
}

int __cudaGetKernel(const void** kernel, const void* function) {
  *kernel = function;
  return kSuccess;
}

/// The limits of every device since compute capability 3.0.
static bool fits(Dim3 grid, Dim3 block) {
  const size_t threads = (size_t)block.x * block.y * block.z;
  return grid.x >= 1 && grid.x <= 2147483647U && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 &&
         threads >= 1 && threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64;
}

static int launch(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes) {
  if (!fits(grid, block)) return kInvalidConfiguration;
  for (int i = 0; i < num_kernels; ++i) {
    if (kernels[i].function != function) continue;
    return callback == NULL ? kInvalidDeviceFunction
                            : callback(kernels[i].name, &grid, &block, arguments, shared_bytes);
  }
  return kInvalidDeviceFunction;
}

int cudaLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  (void)stream;
  return with_error(launch(function, grid, block, arguments, shared_bytes));
}

int __cudaLaunchKernel(const void* kernel, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

int cudaPeekAtLastError(void) { return last_error; }

int cudaGetLastError(void) {
  const int error = last_error;
  last_error = kSuccess;
  return error;
}

const char* cudaGetErrorString(int error) {
  switch (error) {
    case kSuccess:
      return "no error";
    case kInvalidConfiguration:
      return "invalid configuration argument";
    case kInvalidDeviceFunction:
      return "invalid device function";
    case kIllegalAddress:
      return "an illegal memory access was encountered";
    case kOutOfResources:
      return "too many resources requested for launch";
    default:
      return "unrecognized error code";
  }
}
