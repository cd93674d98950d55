# rope_kernels_library(name flag...): a static library of the kernels, compiled with the given flags besides the common.
# The library named rope_kernels takes the kernels that setup.py has compiled, with the same flags, where they are given.
set(ROPE_KERNELS_OBJECTS "" CACHE PATH "setup.py's folder of objects, build/native, instead of compiling the kernels again")

set(ISAS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(ISAS avx2 avx512 avx512_bf16)
endif()
set(FLAGS_avx2 -mavx2 -mfma -mf16c)
set(FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512)
set(FLAGS_avx512_bf16 ${FLAGS_avx512} -mavx512bf16)

function(rope_kernels_library name)
  set(folder ${PROJECT_SOURCE_DIR}/csrc)
  add_library(${name} STATIC ${folder}/core/spec.cpp ${folder}/cpu/dispatch.cpp ${folder}/cpu/scratch.cpp)
  foreach(isa IN LISTS ISAS ITEMS portable)
    set(object ${ROPE_KERNELS_OBJECTS}/cpu/isa/${isa}.cpp.o)
    if(name STREQUAL rope_kernels AND EXISTS ${object})
      target_sources(${name} PRIVATE ${object})
      set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON)
      continue()
    endif()
    target_sources(${name} PRIVATE ${folder}/cpu/isa/${isa}.cpp)
    # gcc 12 warns about its own intrinsics, which start from an undefined register.
    set_source_files_properties(
      ${folder}/cpu/isa/${isa}.cpp PROPERTIES COMPILE_OPTIONS "${FLAGS_${isa}};-Wno-maybe-uninitialized;-Wno-uninitialized"
    )
  endforeach()
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${folder}> $<INSTALL_INTERFACE:include>)
  target_compile_features(${name} PUBLIC cxx_std_20)
  target_compile_options(${name} PRIVATE -fno-math-errno -Wall -Wextra -Wno-psabi -Wno-unused-parameter ${ARGN})
  set_target_properties(
    ${name}
    PROPERTIES CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               POSITION_INDEPENDENT_CODE ON
  )
endfunction()
