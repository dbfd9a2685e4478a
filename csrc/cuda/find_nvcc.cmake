# Sets CMAKE_CUDA_COMPILER to a usable nvcc, from CUDA_HOME, PATH, or the Python package nvidia-cuda-nvcc, in this order;
# or LNB_NO_CUDA to the reason why there is none.
set(LNB_NO_CUDA "")

if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_nvcc.py
    OUTPUT_VARIABLE LNB_PIP_NVCC ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REGEX REPLACE "/nvcc(\n|$)" ";" LNB_PIP_NVCC "${LNB_PIP_NVCC}")
  if(DEFINED ENV{CUDA_HOME})
    find_program(LNB_NVCC nvcc PATHS "$ENV{CUDA_HOME}/bin" NO_DEFAULT_PATH)
  endif()
  find_program(LNB_NVCC nvcc)
  find_program(LNB_NVCC nvcc PATHS ${LNB_PIP_NVCC} NO_DEFAULT_PATH)
  if(LNB_NVCC)
    set(CMAKE_CUDA_COMPILER ${LNB_NVCC})
  endif()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  set(LNB_NO_CUDA "nvcc is not in CUDA_HOME, on PATH, or in the Python package nvidia-cuda-nvcc")
else()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE LNB_NVCC_VERSION ERROR_QUIET)
  if(LNB_NVCC_VERSION MATCHES "V([0-9]+\\.[0-9]+)")
    set(LNB_NVCC_VERSION ${CMAKE_MATCH_1})
  else()
    set(LNB_NO_CUDA "${CMAKE_CUDA_COMPILER} does not run")
  endif()
  if(NOT LNB_NO_CUDA AND LNB_NVCC_VERSION VERSION_LESS 12.1)
    # Older ones allow 4 KiB of kernel parameters: the tables of tensors need more.
    set(LNB_NO_CUDA "nvcc ${LNB_NVCC_VERSION} (${CMAKE_CUDA_COMPILER}) is older than 12.1")
  endif()
endif()

# PTX of the oldest architecture lets newer GPUs than those listed compile the kernels for themselves.
if(NOT LNB_CUDA_ARCHS)
  set(LNB_CUDA_ARCHS "80;90a-real;100a-real")
  if(LNB_NVCC_VERSION VERSION_LESS 12.8)
    set(LNB_CUDA_ARCHS "80;90a-real")
  endif()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${LNB_CUDA_ARCHS})

# A compiler that is there may still not work: with a host compiler too new for it, or with headers missing.
if(NOT LNB_NO_CUDA AND LNB_CUDA STREQUAL "auto")
  file(WRITE ${CMAKE_BINARY_DIR}/try.cu "#include <cuda_bf16.h>\n__global__ void kernel() {}\n")
  list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "([0-9]+[af]?).*" "-gencode=arch=compute_\\1,code=sm_\\1"
    OUTPUT_VARIABLE LNB_GENCODE)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "native|all")
    set(LNB_GENCODE "")
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} -ccbin ${CMAKE_CXX_COMPILER} ${LNB_GENCODE} -c try.cu -o try.o
    WORKING_DIRECTORY ${CMAKE_BINARY_DIR} RESULT_VARIABLE LNB_TRIED ERROR_VARIABLE LNB_TRY_ERROR)
  if(NOT LNB_TRIED EQUAL 0)
    string(REGEX MATCH "[^\n]*(error|fatal|Error)[^\n]*" LNB_TRY_ERROR "${LNB_TRY_ERROR}")
    set(LNB_NO_CUDA "${CMAKE_CUDA_COMPILER} does not compile: ${LNB_TRY_ERROR}")
  endif()
endif()
