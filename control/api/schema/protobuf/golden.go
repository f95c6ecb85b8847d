package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
)

// Fills values so that no two are alike.
type filler struct {
	count int
	// Pointers are set, what they point at is left empty.
	hollow bool
}

func (f *filler) next() int {
	f.count++
	return f.count
}

func (f *filler) fill(value reflect.Value) {
	if f.hollow && value.Kind() != reflect.Pointer && value.Kind() != reflect.Struct {
		return
	}
	if !f.hollow && f.special(value) {
		return
	}
	switch value.Kind() {
	case reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
		f.fill(value.Elem())
	case reflect.String:
		value.SetString(fmt.Sprintf("t%d", f.next()))
	case reflect.Bool:
		value.SetBool(true)
	case reflect.Int32:
		// Negative ones too: they are ten bytes long.
		value.SetInt(int64(f.next()) * 1000 * int64(1-2*(f.count%2)))
	case reflect.Int64:
		value.SetInt(int64(f.next()) << 33)
	case reflect.Slice:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			value.SetBytes([]byte(fmt.Sprintf("\x00\xff%d", f.next())))
			return
		}
		// The second one is empty.
		value.Set(reflect.MakeSlice(value.Type(), 2, 2))
		f.fill(value.Index(0))
	case reflect.Map:
		value.Set(reflect.MakeMap(value.Type()))
		for range 2 {
			key := reflect.New(value.Type().Key()).Elem()
			f.fill(key)
			item := reflect.New(value.Type().Elem()).Elem()
			f.fill(item)
			value.SetMapIndex(key, item)
		}
	case reflect.Struct:
		for i := range value.NumField() {
			if value.Type().Field(i).Tag.Get("protobuf") != "" {
				f.fill(value.Field(i))
			}
		}
	default:
		panic("cannot fill " + value.Type().String())
	}
}

func (f *filler) special(value reflect.Value) bool {
	if !value.CanAddr() {
		return false
	}
	switch at := value.Addr().Interface().(type) {
	case *metav1.Time:
		at.Time = time.Unix(int64(1700000000+f.next()), 0).UTC()
	case *metav1.MicroTime:
		at.Time = time.Unix(int64(1700000000+f.next()), 123456000).UTC()
	case *metav1.FieldsV1:
		*at = *metav1.NewFieldsV1(fmt.Sprintf(`{"f:spec":{"f:n%d":{}}}`, f.next()))
	case *resource.Quantity:
		*at = resource.MustParse([]string{"1500m", "3Gi", "2k", "0"}[f.next()%4])
		_ = at.String()
	case *intstr.IntOrString:
		if f.next()%2 == 0 {
			*at = intstr.FromString(fmt.Sprintf("%d%%", f.count))
		} else {
			*at = intstr.FromInt32(int32(f.count))
		}
	case *runtime.RawExtension:
		at.Raw = []byte(fmt.Sprintf(`{"n":%d}`, f.next()))
	default:
		return false
	}
	return true
}

// Lists are like one another, so are the versions of a kind, and a WatchEvent does not say that it is one.
func worth(gvk schema.GroupVersionKind) bool {
	unstable := strings.Contains(gvk.Version, "alpha") || strings.Contains(gvk.Version, "beta")
	list := strings.HasSuffix(gvk.Kind, "List") && gvk.Kind != "PodList"
	return !unstable && !list && gvk.Kind != "WatchEvent"
}

// Writes each object as a line "KIND VARIANT LENGTH LENGTH" and its two forms, protobuf and JSON.
func golden(kinds []kind) {
	serializer := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	for _, kind := range kinds {
		if !worth(kind.gvk) {
			continue
		}
		for _, variant := range []string{"full", "hollow", "empty"} {
			object := reflect.New(kind.typ)
			filler := filler{hollow: variant == "hollow"}
			if variant != "empty" {
				filler.fill(object.Elem())
			}
			typed := object.Interface().(runtime.Object)
			typed.GetObjectKind().SetGroupVersionKind(kind.gvk)
			var wire bytes.Buffer
			if err := serializer.Encode(typed, &wire); err != nil {
				panic(fmt.Sprintf("%s: %v", kind.name, err))
			}
			text, err := json.Marshal(typed)
			if err != nil {
				panic(fmt.Sprintf("%s: %v", kind.name, err))
			}
			fmt.Printf("%s %s %d %d\n%s%s", kind.name, variant, wire.Len(), len(text), wire.Bytes(), text)
		}
	}
}
