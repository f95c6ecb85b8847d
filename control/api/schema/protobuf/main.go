// Protobuf facts and specimens of Kubernetes' own Go types; both outputs are kept in the repository.
//
// Run it in control/api/schema/protobuf, where go.mod says which release of Kubernetes is meant:
//
//	go run . table < ../types.txt > ../protobuf.txt
//	go run . golden < ../types.txt | gzip -9n > ../../src/protobuf/golden.gz
//
// Both read which kinds are meant from types.txt.
package main

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// Kinds that belong to no group, or to every group, and are told by the core version's name.
var unversioned = map[string]any{
	"APIGroup":                  metav1.APIGroup{},
	"APIGroupList":              metav1.APIGroupList{},
	"APIResourceList":           metav1.APIResourceList{},
	"APIVersions":               metav1.APIVersions{},
	"DeleteOptions":             metav1.DeleteOptions{},
	"PartialObjectMetadata":     metav1.PartialObjectMetadata{},
	"PartialObjectMetadataList": metav1.PartialObjectMetadataList{},
	"Status":                    metav1.Status{},
}

// A kind and the Go type of its objects.
type kind struct {
	gvk  schema.GroupVersionKind
	name string
	typ  reflect.Type
}

func word(gvk schema.GroupVersionKind) string {
	return gvk.GroupVersion().String() + "/" + gvk.Kind
}

func kinds() []kind {
	wanted := map[string]bool{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), " ") {
			continue
		}
		for _, word := range strings.Fields(lines.Text()) {
			wanted[word] = true
		}
	}
	var found []kind
	for gvk, typ := range scheme.Scheme.AllKnownTypes() {
		if wanted[word(gvk)] && unversioned[gvk.Kind] == nil {
			found = append(found, kind{gvk, word(gvk), typ})
		}
	}
	for name, value := range unversioned {
		version := "v1"
		if strings.HasPrefix(name, "Partial") {
			version = "meta.k8s.io/v1"
		}
		gvk := schema.FromAPIVersionAndKind(version, name)
		found = append(found, kind{gvk, word(gvk), reflect.TypeOf(value)})
	}
	slices.SortFunc(found, func(a, b kind) int { return strings.Compare(a.name, b.name) })
	return found
}

func main() {
	what := ""
	if len(os.Args) == 2 {
		what = os.Args[1]
	}
	switch what {
	case "table":
		table(kinds())
	case "golden":
		golden(kinds())
	default:
		fmt.Fprintln(os.Stderr, "usage: go run . table|golden < ../types.txt")
		os.Exit(2)
	}
}
