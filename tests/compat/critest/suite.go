// Package critest pins Kubernetes' test suite for CRI and its command line, for `cargo xtask conformance cri`: both
// are built as they are, and nothing of ours is in them.
package critest

import (
	// What the suite's test binary is made of: a tool's own tests are no part of this module's sums otherwise.
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
