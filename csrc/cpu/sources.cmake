# CPU kernels: lnb_cpu. Loops are compiled once per instruction set; the best that the CPU runs is chosen at run time.
add_library(lnb_cpu STATIC
  csrc/cpu/multi_tensor.cpp csrc/cpu/multi_tensor_portable.cpp csrc/cpu/parallel.cpp csrc/cpu/sleeping_pool.cpp)
target_link_libraries(lnb_cpu PRIVATE lnb_warnings PUBLIC Threads::Threads ${CMAKE_DL_LIBS})

set(LNB_LOOP_SOURCES csrc/cpu/multi_tensor_portable.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
  list(APPEND LNB_LOOP_SOURCES csrc/cpu/multi_tensor_avx2.cpp csrc/cpu/multi_tensor_avx512.cpp)
  target_sources(lnb_cpu PRIVATE csrc/cpu/multi_tensor_avx2.cpp csrc/cpu/multi_tensor_avx512.cpp)
  target_compile_definitions(lnb_cpu PRIVATE LNB_X86)
  set_property(SOURCE csrc/cpu/multi_tensor_avx2.cpp APPEND PROPERTY COMPILE_OPTIONS -mavx2 -mfma -mbmi2)
  set_property(SOURCE csrc/cpu/multi_tensor_avx512.cpp APPEND PROPERTY COMPILE_OPTIONS
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi2 -mprefer-vector-width=512)
endif()
if(NOT MSVC)
  # omp simd without an OpenMP runtime; products and sums may fuse; no floating-point traps or errno to preserve.
  set_property(SOURCE ${LNB_LOOP_SOURCES} APPEND PROPERTY COMPILE_OPTIONS
    -O3 -fopenmp-simd -ffp-contract=fast -fno-math-errno -fno-trapping-math)
endif()
