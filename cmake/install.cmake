# What `cmake --install` leaves: the library, its headers, and the files that find_package(rope_kernels) reads.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(CONFIG_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/rope_kernels)
install(TARGETS rope_kernels EXPORT rope_kernels-targets)
install(DIRECTORY csrc/core DESTINATION include/rope_kernels FILES_MATCHING PATTERN "*.h")
install(FILES csrc/cpu/rotate.h DESTINATION include/rope_kernels/cpu)
install(FILES cmake/include/frequency.h cmake/include/rotate.h DESTINATION include/rope_kernels)
install(EXPORT rope_kernels-targets NAMESPACE rope_kernels:: DESTINATION ${CONFIG_FOLDER})
configure_package_config_file(
  cmake/rope_kernels-config.cmake.in rope_kernels-config.cmake INSTALL_DESTINATION ${CONFIG_FOLDER}
)
write_basic_package_version_file(rope_kernels-config-version.cmake COMPATIBILITY SameMinorVersion)
install(
  FILES ${PROJECT_BINARY_DIR}/rope_kernels-config.cmake ${PROJECT_BINARY_DIR}/rope_kernels-config-version.cmake
  DESTINATION ${CONFIG_FOLDER}
)
