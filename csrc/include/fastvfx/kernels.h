// The C++ interface of the library: one function per kernel and processor. Arguments are plain structs of pointers
// and sizes; nothing here allocates a result, knows of Python, or of torch.
#pragma once

#include "fastvfx/aabb.h"
#include "fastvfx/attention.h"
#include "fastvfx/bias_act.h"
#include "fastvfx/composite.h"
#include "fastvfx/filtered_lrelu.h"
#include "fastvfx/frequency.h"
#include "fastvfx/hashgrid.h"
#include "fastvfx/march.h"
#include "fastvfx/mlp.h"
#include "fastvfx/occupancy.h"
#include "fastvfx/offsets.h"
#include "fastvfx/spherical_harmonics.h"
#include "fastvfx/square_sums.h"
#include "fastvfx/transpose.h"
#include "fastvfx/upfirdn2d.h"
#include "fastvfx/winograd.h"

namespace fastvfx {

// Instruction-set levels of x86-64; everything else runs `generic`.
enum class Isa : int { generic = 0, x86_64_v2 = 2, x86_64_v3 = 3, x86_64_v4 = 4 };

Isa detected_isa();     // the best that this processor and this build have
Isa active_isa();       // what cpu:: functions run: detected_isa(), or FASTVFX_CPU_ISA=generic|v2|v3|v4, or set_isa()
void set_isa(Isa isa);  // throws std::invalid_argument when the processor or the build lacks it
const char* isa_name(Isa isa);

// Matrix tiles (AMX in bf16), beside x86-64-v4. Linux lends them to a process that asks: the first call does.
bool detected_amx();
bool active_amx();      // whether kernels of x86-64-v4 use them: if there, unless FASTVFX_CPU_AMX=off or set_amx(false)
void set_amx(bool on);  // throws std::invalid_argument when they are not there

namespace cpu {
#define FVX_KERNEL(name, Args) void name(const Args& args);
#include "../../cpu/kernels.def"
#undef FVX_KERNEL
}  // namespace cpu

// Asynchronous on args.stream. Throw std::runtime_error when a launch is refused.
namespace cuda {
void bias_act_fwd(const BiasActFwd& args);
void bias_act_bwd(const BiasActBwd& args);
void bias_act_bwd_bwd(const BiasActBwdBwd& args);
// How many numbers the gradients need room for in `sums`, by what is wanted of them.
int64_t bias_act_sums(const BiasAct& args, bool g_scale, bool g_noise, bool g_b);
void composite_fwd(const CompositeFwd& args);
void composite_bwd(const CompositeBwd& args);
void filtered_lrelu_pass(const FilteredLrelu& args);
void frequency_fwd(const FrequencyFwd& args);
void frequency_bwd(const FrequencyBwd& args);
void frequency_bwd_bwd(const FrequencyBwdBwd& args);
void spherical_harmonics_fwd(const SphericalHarmonicsFwd& args);
void spherical_harmonics_bwd(const SphericalHarmonicsBwd& args);
void spherical_harmonics_bwd_bwd(const SphericalHarmonicsBwdBwd& args);
void aabb_fwd(const AabbFwd& args);
void occupancy_pack(const OccupancyPack& args);
void occupancy_unpack(const OccupancyUnpack& args);
void march_count(const MarchCount& args);
void march_write(const MarchWrite& args);
void hashgrid_fwd(const HashGridFwd& args);
void hashgrid_bwd_table(const HashGridBwdTable& args);
void hashgrid_bwd_x(const HashGridBwdX& args);
void upfirdn2d_fwd(const Upfirdn2dFwd& args);
void upfirdn2d_bwd_f(const Upfirdn2dBwdF& args);
}  // namespace cuda

}  // namespace fastvfx
