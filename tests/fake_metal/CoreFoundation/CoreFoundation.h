#pragma once
using CFTimeInterval = double;
