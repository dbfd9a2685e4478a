# CPU kernels: lnb_cpu. Loops are compiled once per instruction set; the best that the CPU runs is chosen at run time.
include(CheckCXXCompilerFlag)

add_library(lnb_cpu STATIC
  csrc/cpu/two_sided.cpp csrc/cpu/cg_vectors.cpp csrc/cpu/conv_lanes.cpp csrc/cpu/conv_moment.cpp csrc/cpu/isa.cpp csrc/cpu/multi_tensor.cpp
  csrc/cpu/newton_schulz.cpp csrc/cpu/parallel.cpp csrc/cpu/refresh.cpp csrc/cpu/second_moment.cpp csrc/cpu/sleeping_pool.cpp
  csrc/cpu/spd_inverse.cpp csrc/cpu/step_numbers.cpp csrc/cpu/step_tables.cpp)
target_link_libraries(lnb_cpu PRIVATE lnb_warnings PUBLIC Threads::Threads ${CMAKE_DL_LIBS})
if(LNB_SANITIZE STREQUAL "thread")
  # The thread sanitizer does not see how libgomp's threads wait for each other, and would report races that are none.
  target_compile_definitions(lnb_cpu PRIVATE LNB_OWN_THREADS)
endif()

# One source, whose table of loops for the instruction set of these flags is NAME.
function(lnb_add_loops NAME)
  add_library(lnb_${NAME} OBJECT csrc/cpu/isa_loops.cpp)
  target_compile_definitions(lnb_${NAME} PRIVATE LNB_LOOPS=${NAME})
  target_compile_options(lnb_${NAME} PRIVATE ${ARGN})
  if(NOT MSVC)
    # omp simd without an OpenMP runtime; products and sums may fuse; no floating-point traps or errno to preserve.
    target_compile_options(lnb_${NAME} PRIVATE -O3 -fopenmp-simd -ffp-contract=fast -fno-math-errno -fno-trapping-math)
  endif()
  target_link_libraries(lnb_${NAME} PRIVATE lnb_warnings)
  target_sources(lnb_cpu PRIVATE $<TARGET_OBJECTS:lnb_${NAME}>)
endfunction()

lnb_add_loops(portable_loops)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
  set(LNB_AVX512_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi2 -mprefer-vector-width=512)
  target_compile_definitions(lnb_cpu PRIVATE LNB_X86)
  lnb_add_loops(avx2_loops -mavx2 -mfma -mbmi2)
  lnb_add_loops(avx512_loops ${LNB_AVX512_FLAGS})
  check_cxx_compiler_flag(-mavx512bf16 LNB_HAS_AVX512_BF16)  # GCC 10, Clang 9
  if(LNB_HAS_AVX512_BF16)
    target_compile_definitions(lnb_cpu PRIVATE LNB_AVX512_BF16)
    lnb_add_loops(avx512_bf16_tiles ${LNB_AVX512_FLAGS} -mavx512bf16)
  endif()
endif()
