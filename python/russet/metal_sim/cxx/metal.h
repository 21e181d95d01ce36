// Metal's standard library, in place of <metal_stdlib> and all other <metal_...>, for translated Metal text.
#pragma once
#include "metal/atomic.h"
#include "metal/kernel.h"
#include "metal/simdgroup_matrix.h"
