// Turnable meshes for the pages of gen3d gallery, without other files: it reads
// the .glb that gen3d writes (triangles, normals, vertex colors, one texture).
//
// A <canvas data-mesh="NAME"> loads NAME/mesh.js when it is scrolled into view,
// since a page from file:// may load scripts, but not fetch .glb files; that
// script calls gen3dMesh(NAME, BASE64). All canvases share one WebGL context,
// of which browsers have few. Drag turns, Ctrl and the wheel (or a pinch) zoom,
// a double click starts the turning again.
'use strict';
(() => {
  const VERTEX = `#version 300 es
    in vec3 position, normal, color; in vec2 uv;
    uniform mat4 view; uniform mat3 turn; uniform vec3 center;
    out vec3 n, c; out vec2 t;
    void main() {
      n = turn * normal; c = color; t = uv;
      gl_Position = view * vec4(turn * (position - center), 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 n, c; in vec2 t; uniform sampler2D image; out vec4 pixel;
    vec3 display(vec3 x) {  // from linear values, as glTF's colors are
      return mix(12.92 * x, 1.055 * pow(x, vec3(1.0 / 2.4)) - 0.055,
                 step(0.0031308, x));
    }
    void main() {
      float shade = 0.45 + 0.55 * abs(normalize(n).z);
      pixel = vec4(texture(image, t).rgb * display(c) * shade, 1.0);
    }`;
  const SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4};
  const READ = {5121: 'getUint8', 5123: 'getUint16', 5125: 'getUint32',
                5126: 'getFloat32'};
  const WIDTH = {SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4};
  const shared = document.createElement('canvas');
  const gl = shared.getContext('webgl2', {antialias: true, alpha: true});
  const waiting = {};
  let program;

  function compile() {
    const made = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX],
                                  [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(made, shader);
    }
    ['position', 'normal', 'color', 'uv'].forEach(
        (name, place) => gl.bindAttribLocation(made, place, name));
    gl.linkProgram(made);
    return made;
  }

  // The numbers of an accessor, `width` for each vertex; integers for indices.
  function numbers(tree, binary, index, width) {
    const accessor = tree.accessors[index];
    const buffer = tree.bufferViews[accessor.bufferView];
    const kind = accessor.componentType, size = SIZES[kind];
    const stride = buffer.byteStride || size * WIDTH[accessor.type];
    const scale = accessor.normalized ? {5121: 255, 5123: 65535}[kind] : 1;
    const first = binary.byteOffset + (buffer.byteOffset || 0) +
        (accessor.byteOffset || 0);
    const data = new DataView(binary.buffer);
    const result = new (kind === 5126 || scale > 1 ? Float32Array :
                        Uint32Array)(accessor.count * width);
    for (let i = 0; i < accessor.count; i++) {
      for (let j = 0; j < width; j++) {
        result[i * width + j] = data[READ[kind]](
            first + i * stride + j * size, true) / scale;
      }
    }
    return result;
  }

  // {parts, center, radius} of the bytes of a .glb, on the graphics card.
  function upload(bytes) {
    const data = new DataView(bytes.buffer);
    const length = data.getUint32(12, true);
    const tree = JSON.parse(new TextDecoder().decode(
        bytes.subarray(20, 20 + length)));
    const binary = bytes.subarray(28 + length);
    const low = [1e30, 1e30, 1e30], high = [-1e30, -1e30, -1e30];
    const parts = tree.meshes.flatMap(mesh => mesh.primitives).map(part => {
      const names = part.attributes;
      const position = numbers(tree, binary, names.POSITION, 3);
      position.forEach((x, i) => {
        low[i % 3] = Math.min(low[i % 3], x);
        high[i % 3] = Math.max(high[i % 3], x);
      });
      const array = gl.createVertexArray();
      gl.bindVertexArray(array);
      const attribute = (place, values, width) => {
        gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
        gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
        gl.enableVertexAttribArray(place);
        gl.vertexAttribPointer(place, width, gl.FLOAT, false, 0, 0);
      };
      attribute(0, position, 3);
      attribute(1, numbers(tree, binary, names.NORMAL, 3), 3);
      if (names.COLOR_0 === undefined) {
        gl.vertexAttrib3f(2, 1, 1, 1);
      } else {
        attribute(2, numbers(tree, binary, names.COLOR_0, 3), 3);
      }
      if (names.TEXCOORD_0 !== undefined) {
        attribute(3, numbers(tree, binary, names.TEXCOORD_0, 2), 2);
      }
      const indices = numbers(tree, binary, part.indices, 1);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
      return {array, count: indices.length,
              colored: names.COLOR_0 !== undefined,
              image: texture(tree, binary, part)};
    });
    const center = low.map((x, i) => (x + high[i]) / 2);
    return {parts, center, radius: Math.hypot(
        ...high.map((x, i) => x - center[i])) || 1};
  }

  // The texture of a part: white until its image is decoded, or where none is.
  function texture(tree, binary, part) {
    const made = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA,
                  gl.UNSIGNED_BYTE, new Uint8Array([255, 255, 255, 255]));
    const material = (tree.materials || [])[part.material] || {};
    const entry = (material.pbrMetallicRoughness || {}).baseColorTexture;
    if (entry) {
      const image = tree.images[tree.textures[entry.index].source];
      const place = tree.bufferViews[image.bufferView];
      const start = place.byteOffset || 0;
      createImageBitmap(new Blob(
          [binary.subarray(start, start + place.byteLength)],
          {type: image.mimeType})).then(decoded => {
        gl.bindTexture(gl.TEXTURE_2D, made);
        gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE,
                      decoded);
        gl.generateMipmap(gl.TEXTURE_2D);
        gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER,
                         gl.LINEAR_MIPMAP_LINEAR);
      });
    }
    return made;
  }

  // Column by column: a perspective view from `distance`, looking along -z.
  function perspective(distance, radius, aspect) {
    const focal = 2.4, near = distance / 50, far = distance + 2 * radius;
    const a = (far + near) / (near - far), b = 2 * far * near / (near - far);
    return [focal / aspect, 0, 0, 0, 0, focal, 0, 0, 0, 0, a, -1,
            0, 0, b - a * distance, distance];
  }

  function draw(state) {
    const {canvas, mesh} = state;
    const [width, height] = [canvas.width, canvas.height];
    if (shared.width !== width) shared.width = width;
    if (shared.height !== height) shared.height = height;
    program = program || compile();
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(program);
    const [sa, ca] = [Math.sin(state.azimuth), Math.cos(state.azimuth)];
    const [se, ce] = [Math.sin(state.elevation), Math.cos(state.elevation)];
    const place = name => gl.getUniformLocation(program, name);
    gl.uniformMatrix3fv(place('turn'), false, [
      ca, sa * se, -sa * ce, 0, ce, se, sa, -ca * se, ca * ce]);
    gl.uniformMatrix4fv(place('view'), false, perspective(
        2.4 * mesh.radius / state.zoom, mesh.radius, width / height));
    gl.uniform3fv(place('center'), mesh.center);
    for (const part of mesh.parts) {
      gl.bindVertexArray(part.array);
      if (!part.colored) gl.vertexAttrib3f(2, 1, 1, 1);
      gl.bindTexture(gl.TEXTURE_2D, part.image);
      gl.drawElements(gl.TRIANGLES, part.count, gl.UNSIGNED_INT, 0);
    }
    const plane = canvas.getContext('2d');
    plane.clearRect(0, 0, width, height);
    plane.drawImage(shared, 0, 0);
  }

  function listen(state) {
    const {canvas} = state;
    canvas.addEventListener('pointerdown', event => {
      canvas.setPointerCapture(event.pointerId);
      state.turning = false;
    });
    canvas.addEventListener('pointermove', event => {
      if (!event.buttons) return;
      state.azimuth += event.movementX / 100;
      state.elevation = Math.max(-1.5, Math.min(
          1.5, state.elevation + event.movementY / 100));
    });
    canvas.addEventListener('wheel', event => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      state.zoom = Math.max(0.3, Math.min(
          10, state.zoom * Math.exp(-event.deltaY / 300)));
    }, {passive: false});
    canvas.addEventListener('dblclick', () => {
      state.turning = true;
      state.zoom = 1;
    });
  }

  const visible = new Set();
  window.gen3dMesh = (name, text) => {
    const state = waiting[name];
    state.mesh = upload(Uint8Array.from(atob(text), x => x.charCodeAt(0)));
    listen(state);
  };
  const observer = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
      const state = waiting[target.dataset.mesh];
      visible[isIntersecting ? 'add' : 'delete'](state);
      if (isIntersecting && !state.asked) {
        state.asked = true;
        const script = document.createElement('script');
        script.src = `${target.dataset.mesh}/mesh.js`;
        document.head.append(script);
      }
    }
  });
  for (const canvas of document.querySelectorAll('canvas[data-mesh]')) {
    if (!gl) {
      canvas.replaceWith('This browser has no WebGL 2: open the file.');
      continue;
    }
    waiting[canvas.dataset.mesh] = {
      canvas, azimuth: -0.5, elevation: 0.3, zoom: 1, turning: true};
    observer.observe(canvas);
  }
  let before = 0;
  requestAnimationFrame(function frame(now) {
    for (const state of visible) {
      if (!state.mesh) continue;
      if (state.turning) state.azimuth += Math.min(now - before, 100) / 2000;
      draw(state);
    }
    before = now;
    requestAnimationFrame(frame);
  });
})();
