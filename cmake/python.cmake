# rope_kernels_math: the mathematics and the kernels over numpy arrays, for property tests. No part of the wheel.
find_package(Python 3.10 COMPONENTS Interpreter Development.Module)
if(NOT Python_Development.Module_FOUND)
  message(FATAL_ERROR "Python.h was not found: install python3-dev, or pass -DROPE_KERNELS_PYTHON=OFF")
endif()
execute_process(
  COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
  OUTPUT_VARIABLE pybind11_DIR
  OUTPUT_STRIP_TRAILING_WHITESPACE
)
find_package(pybind11 3 CONFIG REQUIRED)
pybind11_add_module(rope_kernels_math NO_EXTRAS tests/cpp/math_module.cpp)
target_link_libraries(rope_kernels_math PRIVATE rope_kernels)
target_compile_options(rope_kernels_math PRIVATE -O1 -Wall -Wextra)
set_target_properties(rope_kernels_math PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/python)
