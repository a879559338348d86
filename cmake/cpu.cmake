# CPU kernels: the same sources once per x86-64 level, each in its own namespace (FVX_ISA); one generic build elsewhere.
file(GLOB cpu_sources CONFIGURE_DEPENDS csrc/cpu/*.cpp)
list(REMOVE_ITEM cpu_sources ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/dispatch.cpp
     ${CMAKE_CURRENT_SOURCE_DIR}/csrc/cpu/workspace.cpp)

# torch brings the OpenMP runtime; only its interface is linked here (docs/threads.md).
find_package(OpenMP COMPONENTS CXX)
set(FASTVFX_THREADS $<$<BOOL:${OpenMP_CXX_FOUND}>:OpenMP::OpenMP_CXX>)

set(gnu_like $<CXX_COMPILER_ID:GNU,Clang,AppleClang>)
set(kernel_flags
    $<${gnu_like}:-O3>
    $<${gnu_like}:-ffp-contract=fast>
    $<${gnu_like}:-fno-math-errno>
    $<${gnu_like}:-fno-trapping-math>
    $<${gnu_like}:-fopenmp-simd>
    $<${gnu_like}:-Wall>
    $<${gnu_like}:-Wextra>)

# Marching decides by comparing positions which samples exist: it must round alike on every processor.
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  set_source_files_properties(csrc/cpu/march.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
endif()

set(FASTVFX_CPU_OBJECTS)
set(FASTVFX_CPU_DEFINITIONS)
set(FASTVFX_CPU_LEVELS)
function(add_cpu_level isa)
  add_library(fastvfx_${isa} OBJECT ${cpu_sources})
  target_include_directories(fastvfx_${isa} PRIVATE csrc/include)
  target_compile_definitions(fastvfx_${isa} PRIVATE FVX_ISA=${isa})
  target_compile_options(fastvfx_${isa} PRIVATE ${kernel_flags} ${ARGN})
  target_link_libraries(fastvfx_${isa} PRIVATE ${FASTVFX_THREADS})
  set(FASTVFX_CPU_OBJECTS ${FASTVFX_CPU_OBJECTS} $<TARGET_OBJECTS:fastvfx_${isa}> PARENT_SCOPE)
  set(FASTVFX_CPU_LEVELS ${FASTVFX_CPU_LEVELS} ${isa} PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  set(FASTVFX_CPU_DEFINITIONS FVX_X86_LEVELS)
  add_cpu_level(x86_64_v2 -march=x86-64-v2)
  add_cpu_level(x86_64_v3 -march=x86-64-v3)
  # Without the second flag compilers keep to 256-bit vectors.
  add_cpu_level(x86_64_v4 -march=x86-64-v4 -mprefer-vector-width=512)
else()
  add_cpu_level(generic)
endif()
