# CPU kernels: lnb_cpu. Loops are compiled once per instruction set; the best that the CPU runs is chosen at run time.
include(CheckCXXCompilerFlag)

add_library(lnb_cpu STATIC
  csrc/cpu/two_sided.cpp csrc/cpu/cg_vectors.cpp csrc/cpu/cg_vectors_portable.cpp csrc/cpu/conv_lanes.cpp csrc/cpu/conv_moment.cpp csrc/cpu/isa.cpp
  csrc/cpu/multi_tensor.cpp csrc/cpu/multi_tensor_portable.cpp csrc/cpu/newton_schulz.cpp csrc/cpu/parallel.cpp csrc/cpu/products_portable.cpp
  csrc/cpu/refresh.cpp csrc/cpu/second_moment.cpp csrc/cpu/sleeping_pool.cpp csrc/cpu/spd_inverse.cpp csrc/cpu/step_numbers.cpp csrc/cpu/step_tables.cpp
  csrc/cpu/tiles_portable.cpp)
target_link_libraries(lnb_cpu PRIVATE lnb_warnings PUBLIC Threads::Threads ${CMAKE_DL_LIBS})
if(LNB_SANITIZE STREQUAL "thread")
  # The thread sanitizer does not see how libgomp's threads wait for each other, and would report races that are none.
  target_compile_definitions(lnb_cpu PRIVATE LNB_OWN_THREADS)
endif()

set(LNB_LOOP_SOURCES csrc/cpu/cg_vectors_portable.cpp csrc/cpu/multi_tensor_portable.cpp csrc/cpu/products_portable.cpp
  csrc/cpu/tiles_portable.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
  set(LNB_AVX2 csrc/cpu/cg_vectors_avx2.cpp csrc/cpu/multi_tensor_avx2.cpp csrc/cpu/products_avx2.cpp
    csrc/cpu/tiles_avx2.cpp)
  set(LNB_AVX512 csrc/cpu/cg_vectors_avx512.cpp csrc/cpu/multi_tensor_avx512.cpp csrc/cpu/products_avx512.cpp
    csrc/cpu/tiles_avx512.cpp)
  set(LNB_AVX512_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi2 -mprefer-vector-width=512)
  target_compile_definitions(lnb_cpu PRIVATE LNB_X86)
  check_cxx_compiler_flag(-mavx512bf16 LNB_HAS_AVX512_BF16)  # GCC 10, Clang 9
  if(LNB_HAS_AVX512_BF16)
    list(APPEND LNB_AVX512 csrc/cpu/tiles_avx512_bf16.cpp)
    target_compile_definitions(lnb_cpu PRIVATE LNB_AVX512_BF16)
    set_property(SOURCE csrc/cpu/tiles_avx512_bf16.cpp APPEND PROPERTY COMPILE_OPTIONS -mavx512bf16)
  endif()
  list(APPEND LNB_LOOP_SOURCES ${LNB_AVX2} ${LNB_AVX512})
  target_sources(lnb_cpu PRIVATE ${LNB_AVX2} ${LNB_AVX512})
  set_property(SOURCE ${LNB_AVX2} APPEND PROPERTY COMPILE_OPTIONS -mavx2 -mfma -mbmi2)
  set_property(SOURCE ${LNB_AVX512} APPEND PROPERTY COMPILE_OPTIONS ${LNB_AVX512_FLAGS})
endif()
if(NOT MSVC)
  # omp simd without an OpenMP runtime; products and sums may fuse; no floating-point traps or errno to preserve.
  set_property(SOURCE ${LNB_LOOP_SOURCES} APPEND PROPERTY COMPILE_OPTIONS
    -O3 -fopenmp-simd -ffp-contract=fast -fno-math-errno -fno-trapping-math)
endif()
