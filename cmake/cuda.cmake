# CUDA kernels, when wanted and nvcc is there. A GPU is not needed to build them, nor a torch with CUDA.
set(FASTVFX_CUDA_OBJECTS)
set(FASTVFX_CUDA_RUNTIME)
set(FASTVFX_BUILT_ARCHS "")
string(TOLOWER "${FASTVFX_CUDA}" wanted)
if(NOT wanted MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "FASTVFX_CUDA: expected auto, on or off, got ${FASTVFX_CUDA}")
endif()
if(wanted STREQUAL "off")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(wanted STREQUAL "on")
    message(FATAL_ERROR "FASTVFX_CUDA=on, but nvcc was not found: put it on PATH or set CUDACXX")
  endif()
  message(STATUS "fastvfx: nvcc not found, building without CUDA kernels")
  return()
endif()

# enable_language() wants architectures of its own; what we compile for is given as flags, since CMake before 3.28
# does not know the newest ones.
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_STANDARD 17)
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

set(arch_flags)
foreach(arch IN LISTS FASTVFX_CUDA_ARCHS)
  list(APPEND arch_flags "-gencode=arch=compute_${arch},code=sm_${arch}")
endforeach()
# PTX of the newest plain architecture lets later GPUs run too.
list(GET FASTVFX_CUDA_ARCHS -1 newest)
if(newest MATCHES "^[0-9]+$")
  list(APPEND arch_flags "-gencode=arch=compute_${newest},code=compute_${newest}")
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(fastvfx_cuda OBJECT ${cuda_sources})
target_include_directories(fastvfx_cuda PRIVATE csrc/include)
target_compile_options(fastvfx_cuda PRIVATE ${arch_flags} --expt-relaxed-constexpr -O3 -lineinfo)
# The GPU must keep the samples that the CPU keeps (cmake/cpu.cmake).
set_source_files_properties(csrc/cuda/march.cu PROPERTIES COMPILE_OPTIONS -fmad=false)
set(FASTVFX_CUDA_OBJECTS $<TARGET_OBJECTS:fastvfx_cuda>)
# The static runtime looks for the driver only when it is first used, so the module loads on machines without one.
set(FASTVFX_CUDA_RUNTIME CUDA::cudart_static)
list(JOIN FASTVFX_CUDA_ARCHS "," FASTVFX_BUILT_ARCHS)
