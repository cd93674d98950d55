# cuda-check: the CUDA kernels compile for every architecture. Takes 40 s of one core, so nothing builds it unasked.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "cuda-check: there is no nvcc")
  return()
endif()
enable_language(CUDA)
add_library(cuda-check OBJECT EXCLUDE_FROM_ALL ${CUDA_SOURCE})
target_include_directories(cuda-check PRIVATE csrc)
# CMake 3.25 does not know the standards of nvcc 13.
target_compile_options(cuda-check PRIVATE -std=c++20 -Werror=all-warnings)
set_target_properties(
  cuda-check PROPERTIES CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90-real;100-real;120"
)
