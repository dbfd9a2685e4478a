# CUDA kernels: the module _cuda_module. It is apart from the CPU module, so that neither needs the other, and it brings
# its own CUDA runtime (static), so that it loads on machines without CUDA. No GPU is needed to build it.
include(csrc/cuda/find_nvcc.cmake)
if(LNB_NO_CUDA)
  if(LNB_CUDA STREQUAL "on")
    message(FATAL_ERROR "LNB_CUDA=on, but ${LNB_NO_CUDA}")
  endif()
  message(STATUS "No CUDA kernels: ${LNB_NO_CUDA}")
else()
  if(NOT CMAKE_CUDA_HOST_COMPILER)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

  add_library(lnb_cuda STATIC
    csrc/cuda/average_moments.cu
    csrc/cuda/conv_moments.cu
    csrc/cuda/conv_plan.cu
    csrc/cuda/device.cu
    csrc/cuda/fused_apply.cu
    csrc/cuda/fused_direct.cu
    csrc/cuda/fused_finish.cu
    csrc/cuda/input_metrics.cu
    csrc/cuda/moment_flags.cu
    csrc/cuda/multi_tensor.cu
    csrc/cuda/multi_tensor_sums.cu
    csrc/cuda/newton_schulz.cu
    csrc/cuda/output_moments.cu
    csrc/cuda/output_roots.cu
    csrc/cuda/pcg_rows.cu
    csrc/cuda/pcg_vectors.cu
    csrc/cuda/spd_inverse.cu
  )
  set_target_properties(lnb_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  if(LNB_WERROR)
    target_compile_options(lnb_cuda PRIVATE -Werror=all-warnings)
  endif()

  pybind11_add_module(_cuda_module MODULE NO_EXTRAS csrc/cuda/bindings.cpp csrc/cuda/conv_bindings.cpp
    csrc/cuda/refresh_bindings.cpp)
  target_include_directories(_cuda_module PRIVATE csrc)
  target_link_libraries(_cuda_module PRIVATE lnb_warnings lnb_cuda)
  # Symbols of the static runtime must not meet those of another one in the process.
  target_link_options(_cuda_module PRIVATE -Wl,--exclude-libs,ALL)
  set_target_properties(_cuda_module PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  install(TARGETS _cuda_module DESTINATION .)
endif()
